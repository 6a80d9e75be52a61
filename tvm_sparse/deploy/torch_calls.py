"""Calls with torch tensors; those on the network's GPU run on torch's stream, outputs in its memory, without copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm_sparse.deploy.metadata import TensorSpec
from tvm_sparse.deploy.tensors import ALIGNMENT_BYTES


class TorchCalls:
    """What can be looked up once; a call takes a few microseconds.

    Parameters
    ----------
    index
        Of the GPU.
    inputs
        Of every call; empty where they vary.
    """

    def __init__(self, tvm_ffi: Any, index: int, inputs: Sequence[TensorSpec]) -> None:
        import torch

        self._torch, self._tvm_ffi = torch, tvm_ffi
        self._index, self._place = index, torch.device("cuda", index)
        self._device = tvm_ffi.device("cuda", index)
        self._inputs = [(torch.Size(spec.shape), getattr(torch, spec.dtype)) for spec in inputs]
        # torch.cuda.current_stream makes an object of it, which takes ten times as long.
        self._current: Callable[[int], int] = getattr(
            torch._C, "_cuda_getCurrentRawStream", lambda index: torch.cuda.current_stream(index).cuda_stream
        )

    def fit(self, values: Sequence[Any]) -> bool:
        """Whether compiled code can read these as they are."""
        if not self._inputs or len(values) != len(self._inputs):
            return False
        return all(
            type(value) is self._torch.Tensor
            and value.dtype is dtype
            and value.shape == shape
            and value.device == self._place
            and not value.requires_grad
            and value.is_contiguous()
            and value.data_ptr() % ALIGNMENT_BYTES == 0
            for value, (shape, dtype) in zip(values, self._inputs, strict=True)
        )

    def stream(self) -> Any:
        """A context in which TVM launches on torch's current stream."""
        return self._tvm_ffi.use_raw_stream(self._device, self._current(self._index))

    def shared(self, values: Sequence[Any]) -> list[Any]:
        """TVM's view of torch tensors."""
        return [self._tvm_ffi.from_dlpack(value) for value in values]

    def new(self, specs: Sequence[TensorSpec]) -> list[Any]:
        """Torch tensors, in memory that knows torch's streams."""
        torch = self._torch
        return [torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device=self._place) for spec in specs]


def first_on_gpu(values: Sequence[Any]) -> bool:
    """Whether the first torch tensor among the inputs, which decides for the outputs, lies on a GPU."""
    return bool(next(value.is_cuda for value in values if type(value).__module__.split(".")[0] == "torch"))


def from_cpu(result: Any, values: Sequence[Any]) -> Any:
    """A CPU network's result as a torch tensor; `values` are the inputs.

    A network may hand on an input as it came; its caller would then write into both.
    """
    import torch

    tensor = torch.from_dlpack(result)
    inputs = [value for value in values if isinstance(value, torch.Tensor)]
    return tensor.clone() if any(value.data_ptr() == tensor.data_ptr() for value in inputs) else tensor
