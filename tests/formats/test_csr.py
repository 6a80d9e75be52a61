from __future__ import annotations

import numpy as np

from tvm_sparse.formats import CSRFilter


def test_layout_by_hand() -> None:
    weight = np.zeros((3, 2, 2, 2), np.float32)
    weight[0, 1, 0, 1], weight[0, 0, 1, 0], weight[2, 1, 1, 1] = 5, 2, 7
    csr = CSRFilter.from_dense(weight)
    assert csr.values.tolist() == [2, 5, 7]
    assert csr.columns.tolist() == [2, 5, 7]
    assert csr.indptr.tolist() == [0, 2, 2, 3] and csr.indptr.dtype == np.int32
    assert csr.stored == 3 and csr.nbytes == 3 * 4 + 3 * 4 + 4 * 4


def test_stream_by_hand() -> None:
    weight = np.zeros((3, 2, 2, 2), np.float32)
    weight[0, 1, 0, 1], weight[0, 0, 1, 0], weight[2, 1, 1, 1] = 5, 2, 7
    stream = CSRFilter.from_dense(weight).stream(channels_per_chunk=1, pad_to=2)
    assert stream.counts.tolist() == [[2, 0, 0], [2, 0, 2]]
    assert stream.starts.tolist() == [[0, 2, 2], [2, 4, 4]]
    assert stream.values.ravel().tolist() == [2, 0, 5, 0, 7, 0]
    assert stream.columns.tolist() == [2, 2, 5, 5, 7, 7]
    assert stream.vector == 1


def test_an_empty_filter_streams_one_zero() -> None:
    stream = CSRFilter.from_dense(np.zeros((3, 2, 2, 2), np.float16)).stream(1)
    assert stream.values.tolist() == [[0]] and stream.values.dtype == np.float16
    assert stream.columns.tolist() == [0]
    assert not stream.counts.any() and not stream.starts.any()
