from __future__ import annotations

import numpy as np

from tvm_sparse.formats import ColumnVectorFilter, CSRFilter


def test_layout_by_hand() -> None:
    weight = np.zeros((5, 2, 1, 2), np.float32)
    weight[0, 0, 0, 1], weight[1, 1, 0, 0], weight[1, 0, 0, 1], weight[4, 1, 0, 1] = 1, 2, 3, 4
    packed = ColumnVectorFilter.from_dense(weight, 2)
    assert packed.values.tolist() == [[1, 3], [0, 2], [4, 0]]
    assert packed.columns.tolist() == [1, 2, 3]
    assert packed.indptr.tolist() == [0, 2, 2, 3] and packed.indptr.dtype == np.int32
    assert (packed.nnz, packed.stored) == (4, 6)
    assert packed.row_stats().empty == 2, "rows are output channels, not blocks"


def test_vectors_of_one_are_csr() -> None:
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((7, 5, 3, 3)) * (rng.random((7, 5, 3, 3)) < 0.2)).astype(np.float32)
    packed, csr = ColumnVectorFilter.from_dense(weight, 1), CSRFilter.from_dense(weight)
    np.testing.assert_array_equal(packed.values[:, 0], csr.values)
    np.testing.assert_array_equal(packed.columns, csr.columns)
    np.testing.assert_array_equal(packed.indptr, csr.indptr)


def test_a_vector_longer_than_the_filter_is_one_block() -> None:
    weight = np.ones((3, 2, 1, 1), np.float32)
    packed = ColumnVectorFilter.from_dense(weight, 8)
    assert packed.values.tolist() == [[1, 1, 1, 0, 0, 0, 0, 0]] * 2
    np.testing.assert_array_equal(packed.to_dense(), weight)
