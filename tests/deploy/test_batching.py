"""How a batch of any size is cut into parts that a library takes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tvm_sparse.deploy import BatchSizes, Metadata, TensorSpec
from tvm_sparse.deploy.batching import split


@given(st.integers(1, 300), st.sets(st.integers(1, 40), min_size=1), st.integers(1, 9))
def test_parts_are_even_fit_and_keep_the_order(n, sizes, devices):
    buckets = tuple(sorted(sizes))
    inputs = (TensorSpec("shift", (7,), "int64"), TensorSpec("x", (buckets[-1], 2), "int64"))
    metadata = Metadata("m", inputs, (), "llvm", batch=BatchSizes(buckets, ("x",)))
    shift, x = np.arange(7), np.arange(2 * n).reshape(n, 2)
    parts = list(split([shift, x], metadata, devices))
    assert all(part[0] is shift for part in parts)
    assert np.array_equal(np.concatenate([part[1] for part in parts]), x)
    counts = [len(part[1]) for part in parts]
    assert min(counts) >= 1 and max(counts) <= buckets[-1] and max(counts) - min(counts) <= 1
    assert len(counts) == n or len(counts) % devices == 0


@given(st.integers(1, 20), st.integers(1, 9), st.integers(1, 4))
def test_a_library_for_one_size_gets_that_size(single, times, devices):
    specs = (TensorSpec("x", (single, 2), "int64"),)
    x = np.arange(2 * single * times).reshape(-1, 2)
    parts = list(split([x], Metadata("m", specs, specs, "llvm"), devices))
    assert [len(part) for (part,) in parts] == [single] * times
    assert np.array_equal(np.concatenate([part for (part,) in parts]), x)
