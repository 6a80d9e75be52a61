from __future__ import annotations

import numpy as np

from tvm_sparse.formats import CSRFilter, SlicedELLFilter


def staircase() -> np.ndarray:
    """Rows of 1, 3, 0, 3 and 2 nonzeros; the weight at (k, c) is 10 k + c + 1."""
    weight = np.zeros((5, 4, 1, 1), np.float32)
    for k, length in enumerate([1, 3, 0, 3, 2]):
        weight[k, :length, 0, 0] = 10 * k + 1 + np.arange(length)
    return weight


def test_layout_by_hand() -> None:
    ell = SlicedELLFilter.from_dense(staircase(), 2)
    assert ell.permutation.tolist() == [1, 3, 4, 0, 2], "longest first, equal lengths in their order"
    assert ell.lengths.tolist() == [3, 3, 2, 1, 0]
    assert ell.widths.tolist() == [3, 2, 0]
    assert ell.slice_starts.tolist() == [0, 6, 10, 10]
    assert ell.values.tolist() == [11, 12, 13, 31, 32, 33, 41, 42, 1, 0]
    assert ell.columns.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 0, 0]
    assert (ell.nnz, ell.stored) == (9, 10)


def test_padding_repeats_the_last_column_and_is_column_0_in_an_empty_row() -> None:
    weight = np.zeros((3, 1, 1, 4), np.float32)
    weight[1, 0, 0, 1:3] = 4, 5
    weight[2, 0, 0, 3] = 6
    ell = SlicedELLFilter.from_dense(weight, 3)
    assert ell.values.tolist() == [4, 5, 6, 0, 0, 0]
    assert ell.columns.tolist() == [1, 2, 3, 3, 0, 0]


def test_slices_of_one_row_have_no_padding() -> None:
    weight = staircase()
    assert SlicedELLFilter.from_dense(weight, 1).stored == CSRFilter.from_dense(weight).stored


def test_the_stream_sorts_inside_each_chunk_and_keeps_original_row_tables() -> None:
    weight = np.zeros((3, 2, 1, 2), np.float32)
    weight[0, 1, 0] = 1, 2
    weight[1, 0, 0] = 3, 4
    weight[2, 0, 0, 0], weight[2, 1, 0, 1] = 5, 6
    stream = SlicedELLFilter.from_dense(weight, 2).stream(channels_per_chunk=1)
    # Chunk 0 is stored as rows 1, 2 | 0, chunk 1 as rows 0, 2 | 1.
    assert stream.counts.tolist() == [[0, 2, 2], [2, 0, 2]]
    assert stream.starts.tolist() == [[4, 0, 2], [4, 8, 6]]
    assert stream.values.ravel().tolist() == [3, 4, 5, 0, 1, 2, 6, 0]
    assert stream.columns.tolist() == [0, 1, 0, 0, 2, 3, 3, 3]
