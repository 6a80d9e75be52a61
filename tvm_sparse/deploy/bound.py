"""A call on tensors that stay the same, as one CUDA graph."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_sparse.cuda.runtime import Graph
from tvm_sparse.deploy.cuda_calls import CudaCalls
from tvm_sparse.errors import InputError

if TYPE_CHECKING:
    from tvm_sparse.deploy.runtime import Network


class BoundCall:
    """What `Network.bind` returns: call it to run the network once on the tensors bound.

    Attributes
    ----------
    network : the network
    inputs : the tensors it reads, in order; write new values into their memory
    outputs : the tensors it writes, in order; the next call overwrites them
    """

    def __init__(
        self,
        network: Network,
        calls: CudaCalls,
        graph: Graph,
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        stream: Callable[[], AbstractContextManager[Any]],
        kept: Sequence[Any] = (),
    ) -> None:
        self.network = network
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self._calls, self._graph, self._stream = calls, graph, stream
        self._kept = kept  # owners of the memory, whatever becomes of the caller's tensors
        weakref.finalize(self, calls.free, graph).atexit = False

    def __call__(self) -> Any:
        """Launch the graph on the stream of a call, and return the outputs, before the work is done; one by itself.

        Raises
        ------
        InputError
            That stream is captured: the network itself can be called there.
        """
        with self._stream():
            self._calls.launch(self._graph)
        return self.outputs[0] if len(self.outputs) == 1 else self.outputs


def check_bindable(tvm_ffi: Any, network: Network, values: Sequence[Any], converted: Sequence[Any]) -> None:
    """Refuse inputs that a call would copy first: `converted` are the tensors that `to_device` made of `values`.

    Raises
    ------
    InputError
        One would be copied; the message says what it lacks.
    """
    for spec, value, tensor in zip(network.inputs, values, converted, strict=True):
        if isinstance(value, np.ndarray | np.generic) or _address(tvm_ffi, value) != tensor.data_ptr():
            sizes = network.metadata.batch
            batches = f", and of a batch compiled for ({', '.join(map(str, sizes.buckets))})" if sizes else ""
            raise InputError(
                f"input {spec.name!r} cannot be bound, a call would copy it: it must lie on {network.device}, "
                f"contiguous from a multiple of 64 bytes on{batches}; network.to_device makes such tensors of arrays"
            )


def _address(tvm_ffi: Any, value: Any) -> int:
    """Where a tensor with a DLPack interface begins."""
    plain = value.detach() if getattr(value, "requires_grad", False) else value
    return int(tvm_ffi.from_dlpack(plain).data_ptr())
