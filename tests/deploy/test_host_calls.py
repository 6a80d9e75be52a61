"""Calls with arrays in host memory: the same tensors each time, nothing of an earlier call in them. On CPU tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm_ffi

from tvm_sparse.deploy import BatchSizes, Metadata, TensorSpec
from tvm_sparse.deploy.batching import Batching
from tvm_sparse.deploy.host_calls import HostCalls
from tvm_sparse.deploy.native import load_runtime
from tvm_sparse.errors import InputError

PLACE = ("cpu", 0)
INPUTS = (TensorSpec("x", (4, 3), "float32"), TensorSpec("shift", (3,), "float32"))
OUTPUTS = (TensorSpec("y", (4, 3), "float32"),)


class Device:
    """Computes 2 x + shift when it is waited for, and notes the memory it was given."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []
        self.inputs: list[np.ndarray] = []
        self.fails = False
        self._work: Any = None

    def invoke(self, inputs: Any, outputs: Any) -> None:
        self.seen.append(tuple(tensor.data_ptr() for tensor in (*inputs, *outputs)))
        self.inputs = [np.array(np.from_dlpack(tensor)) for tensor in inputs]
        self._work = (inputs, outputs)

    def synchronize(self) -> None:
        if self.fails:
            raise RuntimeError("the GPU is gone")
        (x, shift), (y,) = self._work
        np.from_dlpack(y)[...] = 2 * np.from_dlpack(x) + np.from_dlpack(shift)


def calls(batch: BatchSizes | None) -> HostCalls:
    load_runtime(Path("net.so"), cuda=False)
    metadata = Metadata("net", INPUTS, OUTPUTS, "cuda", batch=batch)
    return HostCalls(tvm_ffi, metadata, PLACE, Batching(tvm_ffi, metadata, batch, PLACE) if batch else None)


def arrays(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 3)).astype("float32"), rng.standard_normal(3).astype("float32")


@pytest.fixture
def device() -> Device:
    return Device()


def test_a_library_for_one_batch_size(device: Device) -> None:
    host = calls(None)
    kept = []
    for seed in range(3):
        x, shift = arrays(4, seed)
        (y,) = host((np.asfortranarray(x), shift), device.invoke, device.synchronize)
        kept.append((y, 2 * x + shift))
    assert all(np.array_equal(*pair) for pair in kept)
    assert len(set(device.seen)) == 1


def test_each_bucket_has_its_tensors_and_padding_is_zero(device: Device) -> None:
    host = calls(BatchSizes((1, 2, 4), ("x",)))
    for seed, n in enumerate([4, 3, 1, 4, 3, 3, 2, 1, 4, 3]):
        x, shift = arrays(n, seed)
        (y,) = host((x, shift), device.invoke, device.synchronize)
        assert np.array_equal(y, 2 * x + shift)
        bucket = {1: 1, 2: 2, 3: 4, 4: 4}[n]
        assert device.inputs[0].shape == (bucket, 3) and not device.inputs[0][n:].any()
    assert len(set(device.seen)) == 3


def test_calls_at_the_same_time_have_tensors_of_their_own(device: Device) -> None:
    host = calls(None)
    other = Device()
    x, shift = arrays(4, 0)
    inner = []

    def synchronize() -> None:
        inner.append(host((2 * x, shift), other.invoke, other.synchronize)[0])
        device.synchronize()

    (outer,) = host((x, shift), device.invoke, synchronize)
    assert np.array_equal(outer, 2 * x + shift) and np.array_equal(inner[0], 4 * x + shift)
    assert not set(device.seen[0]) & set(other.seen[0])


def test_tensors_of_a_call_that_failed_are_not_used_again(device: Device) -> None:
    host = calls(None)
    device.fails = True
    with pytest.raises(RuntimeError, match="the GPU is gone"):
        host(arrays(4, 0), device.invoke, device.synchronize)
    held = device._work  # so that the memory is not given out again
    device.fails = False
    x, shift = arrays(4, 1)
    assert np.array_equal(host((x, shift), device.invoke, device.synchronize)[0], 2 * x + shift)
    assert held and not set(device.seen[0]) & set(device.seen[1])


@pytest.mark.parametrize(
    ("shapes", "dtype", "message"),
    [
        (((5, 3), (3,)), "float32", "input 'x' has batch 5, the library serves 1 to 4"),
        (((2, 4), (3,)), "float32", r"input 'x' has shape \(2, 4\), expected \(2, 3\)"),
        (((2, 3), (2,)), "float32", r"input 'shift' has shape \(2\)"),
        (((2, 3), (3,)), "float64", "input 'x' has dtype float64, expected float32"),
    ],
)
def test_wrong_arrays(device: Device, shapes: Any, dtype: str, message: str) -> None:
    host = calls(BatchSizes((1, 4), ("x",)))
    with pytest.raises(InputError, match=message):
        host([np.zeros(shape, dtype) for shape in shapes], device.invoke, device.synchronize)
    assert device.seen == []
