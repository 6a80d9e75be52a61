"""Calls of a GPU with arrays in host memory, through tensors on the device that are kept for the next call.

Memory that is allocated and freed for each call would cost time and, worse, wait for everything else on the GPU.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_sparse.deploy import tensors
from tvm_sparse.deploy.batching import Batching, image_bytes, images, outputs_for, resized, specs_for
from tvm_sparse.deploy.metadata import Metadata, TensorSpec

Invoke = Callable[[Sequence[Any], Sequence[Any]], Any]


@dataclass
class _Buffers:
    """Tensors of one call; `filled` images of the inputs with a batch are not zero."""

    inputs: list[Any]
    outputs: list[Any]
    filled: int = 0


class HostCalls:
    """Runs a library on numpy arrays; several threads may call at once, each through tensors of its own.

    Parameters
    ----------
    place
        "cuda" and the index of the GPU.
    """

    def __init__(self, tvm_ffi: Any, metadata: Metadata, place: tuple[str, int], batching: Batching | None) -> None:
        self._tvm_ffi, self._metadata, self._place, self._batching = tvm_ffi, metadata, place, batching
        self._free: defaultdict[int | None, list[_Buffers]] = defaultdict(list)

    def __call__(
        self, values: Sequence[NDArray[Any]], invoke: Invoke, synchronize: Callable[[], None]
    ) -> tuple[NDArray[Any], ...]:
        """The outputs for one array per input, in order.

        Parameters
        ----------
        invoke, synchronize
            Those of the `Network`: start a call on inputs and outputs on the device, and wait for it.

        Raises
        ------
        InputError
            An array has the wrong shape or dtype, or a batch that is not served.
        """
        n = self._batching.batch_of(values) if self._batching else None
        bucket = self._batching.sizes.bucket(n) if self._batching and n else None
        specs = specs_for(self._metadata, n)
        for spec, value in zip(specs, values, strict=True):
            tensors.check(spec, value.shape, str(value.dtype))
        free = self._free[bucket]
        try:
            buffers = free.pop()
        except IndexError:
            buffers = self._made(bucket)
        for index, value in enumerate(values):
            self._fill(buffers, index, value, n, bucket)
        buffers.filled = n or 0
        invoke(buffers.inputs, buffers.outputs)
        synchronize()
        cut = [output if n == bucket else images(self._tvm_ffi, output, n or 0) for output in buffers.outputs]
        results = tuple(tensors.to_numpy(self._tvm_ffi, output) for output in cut)
        free.append(buffers)  # not after an exception: the GPU may still work on them
        return results

    def _made(self, bucket: int | None) -> _Buffers:
        def zeros(specs: Sequence[TensorSpec]) -> list[Any]:
            return [tensors.zeros(self._tvm_ffi, spec, *self._place) for spec in specs]

        return _Buffers(zeros(specs_for(self._metadata, bucket)), zeros(outputs_for(self._metadata, bucket)))

    def _fill(self, buffers: _Buffers, index: int, value: NDArray[Any], n: int | None, bucket: int | None) -> None:
        """Copy an input, and zeros over what is left of an earlier one behind it."""
        tensor, spec = buffers.inputs[index], self._metadata.inputs[index]
        array = np.ascontiguousarray(value)
        if n is None or self._batching is None or spec.name not in self._batching.sizes.inputs:
            tensors.copy_bytes(self._tvm_ffi, array, tensor)
            return
        tensors.copy_bytes(self._tvm_ffi, array, images(self._tvm_ffi, tensor, n))
        if buffers.filled > n:
            rest = np.zeros(resized(spec, buffers.filled - n).shape, array.dtype)
            start = n * image_bytes(self._tvm_ffi, spec)
            tensors.copy_bytes(self._tvm_ffi, rest, images(self._tvm_ffi, tensor, len(rest), start))
