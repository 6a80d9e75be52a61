"""Argument checks shared by the formats."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_sparse.errors import InputError, ModelError

Array = NDArray[Any]
FilterShape = tuple[int, int, int, int]

INT32_MAX = 2**31 - 1


def check_filter(weight: Any) -> tuple[Array, FilterShape]:
    """Return the filter as a (K, C/groups * R * S) matrix and its four extents.

    Raises
    ------
    InputError
        Not a real-valued array of four nonzero extents, or too large for int32 indices.
    ModelError
        NaN or Inf among the weights.
    """
    array = np.asarray(weight)
    if array.ndim != 4:
        raise InputError(
            f"a filter has the four axes (K, C/groups, R, S), not the shape {array.shape}; "
            "write a 1-D filter as (K, C/groups, 1, S)"
        )
    if 0 in array.shape:
        raise InputError(f"filter of shape {array.shape}: every extent must be at least 1")
    if array.size > INT32_MAX:
        raise InputError(f"filter of shape {array.shape}: {array.size} weights are too many for int32 indices")
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise InputError(f"filter of shape {array.shape}: weights must be real numbers, not {array.dtype}")
    bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if bad:
        raise ModelError(f"filter of shape {array.shape}: {bad} of its weights are NaN or Inf; export the model again")
    k, c, r, s = array.shape
    return array.reshape(k, c * r * s), (k, c, r, s)


def check_count(name: str, value: Any) -> int:
    """Return `value` as an int from 1 to 2^31 - 1; anything else is an InputError naming the argument."""
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if not 1 <= count <= INT32_MAX or isinstance(value, bool):
        raise InputError(f"{name} must be an integer from 1 to {INT32_MAX}, not {value!r}")
    return count


def check_total(total: int, shape: FilterShape) -> None:
    """An InputError where `total` padded weights are more than int32 indices reach."""
    if total > INT32_MAX:
        raise InputError(f"filter of shape {shape}: {total} padded entries are too many for int32 indices; pad less")


def running_start(lengths: Array) -> Array:
    """Offsets of consecutive runs: (n,) lengths to (n + 1,) int64 starts, the last being the total."""
    starts = np.zeros(lengths.size + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def run_positions(starts: Array, lengths: Array) -> Array:
    """Positions ``starts[i], …, starts[i] + lengths[i] - 1`` of every run i, one run after the other (int64)."""
    before = running_start(lengths)
    return np.repeat(starts - before[:-1], lengths) + np.arange(before[-1])
