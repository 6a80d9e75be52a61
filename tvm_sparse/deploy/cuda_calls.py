"""Calls of a CUDA library: its outputs are given to it, and one call works on its memory after the other.

A library's kernels lie in a CUDA graph over memory that belongs to the loaded network. TVM captures it at the first
call and in CUDA's global mode, in which other threads must not allocate or use the default stream meanwhile. So the
capture happens while the library is loaded, and no call of this module runs beside it. Kernels that read the inputs or
write the outputs lie outside of that graph; a call whose tensors stay the same gets a graph of its own that holds all.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tvm_sparse.cuda.runtime import CudaRuntime, Graph, StreamOrder
from tvm_sparse.deploy import tensors
from tvm_sparse.deploy.metadata import TensorSpec
from tvm_sparse.deploy.plain_launches import PlainLaunches
from tvm_sparse.errors import InputError

_ATTEMPTS = 3
_NON_BLOCKING = 1  # cudaStreamNonBlocking
_NOTHING_TO_DO = contextlib.nullcontext()
_enqueue = threading.Lock()
_pool_orders: dict[int, StreamOrder] = {}  # by device: libraries without a graph work on memory of one pool


class CudaCalls:
    """Launches functions of a library on one GPU.

    Parameters
    ----------
    index
        Of the GPU.
    plain
        Switches off the CUDA graph that the kernels lie in. None if they lie in none: a call's memory then comes from a
        pool that all networks share.
    """

    def __init__(self, tvm_ffi: Any, index: int, plain: PlainLaunches | None) -> None:
        self._cuda = CudaRuntime()
        self._tvm_ffi, self._index = tvm_ffi, index
        self._device = tvm_ffi.device("cuda", index)
        self._plain = plain
        count = ctypes.c_int()
        self._cuda("cudaGetDeviceCount", ctypes.byref(count))
        self._several = count.value > 1
        with _enqueue, self._on_device():
            self._order = StreamOrder(self._cuda) if plain else self._shared_order()

    def __call__(self, function: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Launch `function` on TVM's current stream; this returns before the work is done.

        Where the stream is captured, so are the kernels, and who launches that graph sees to the order of calls.

        Raises
        ------
        InputError
            The stream is captured, and the library works on memory that other calls will use.
        """
        with _enqueue, self._on_device():
            stream = self.stream()
            if stream and self._is_captured(stream):
                if self._plain is None:
                    raise InputError("a library compiled with --no-cuda-graph cannot be captured: compile it without")
                with self._plain():
                    function(*inputs, *outputs)
                return
            self._order.begin(stream)
            function(*inputs, *outputs)
            self._order.end(stream)

    def graph(self, function: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> Graph:
        """A call on these very tensors as one graph, for `launch`; `capture` was there before.

        Raises
        ------
        InputError
            TVM's current stream is captured itself.
        RuntimeError
            CUDA refuses it, each time.
        """
        assert self._plain is not None
        if self.capturing():
            raise InputError("a call cannot be bound on a stream that is captured: bind it before")
        with _enqueue, self.own_stream(), self._on_device(), self._plain():
            for attempt in range(_ATTEMPTS):
                try:
                    return Graph(self._cuda, self.stream(), lambda: function(*inputs, *outputs))
                except RuntimeError:
                    if attempt + 1 == _ATTEMPTS:  # else a thread may have waited for the whole GPU meanwhile
                        raise
            raise AssertionError("no attempt")

    def launch(self, graph: Graph) -> None:
        """Launch what `graph` made on TVM's current stream; this returns before the work is done.

        Raises
        ------
        InputError
            The stream is captured.
        """
        with _enqueue, self._on_device():
            stream = self.stream()
            if stream and self._is_captured(stream):
                raise InputError("a bound call is a graph and cannot be captured: call the network itself there")
            self._order.begin(stream)
            graph.launch(stream)
            self._order.end(stream)

    def free(self, graph: Graph) -> None:
        """Give back what a graph takes, once the network's calls are done; what fails here has failed before."""
        with contextlib.suppress(RuntimeError), self._on_device():
            self._order.wait()
        with contextlib.suppress(RuntimeError), self._on_device():
            graph.destroy()

    def capture(
        self, function: Callable[..., Any], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        """Let TVM capture a function's graph, on inputs of zeros.

        Raises
        ------
        RuntimeError
            CUDA refuses it, each time.
        """
        if not self._plain:
            return
        arguments = [tensors.zeros(self._tvm_ffi, spec, "cuda", self._index) for spec in (*inputs, *outputs)]
        with _enqueue, self._on_device():
            for attempt in range(_ATTEMPTS):
                self._cuda("cudaDeviceSynchronize")  # the memory may have been another network's a moment ago
                try:
                    function(*arguments)
                    self._cuda("cudaDeviceSynchronize")
                    return
                except RuntimeError:
                    if attempt + 1 == _ATTEMPTS:  # else a thread of somebody else may have come in between
                        raise

    def stream(self) -> int:
        """TVM's current stream."""
        current = self._tvm_ffi.get_raw_stream(self._device)
        return int(getattr(current, "value", current) or 0)

    @contextlib.contextmanager
    def own_stream(self) -> Iterator[None]:
        """Another current stream for this thread, one that does not wait for the default stream nor lets it wait."""
        with self._on_device():
            stream = self._cuda.made("cudaStreamCreateWithFlags", ctypes.c_uint(_NON_BLOCKING))
        try:
            with self._tvm_ffi.use_raw_stream(self._device, stream.value):
                yield
        finally:
            with contextlib.suppress(RuntimeError), self._on_device():  # what fails here has failed before
                self._cuda("cudaStreamSynchronize", stream)
                self._cuda("cudaStreamDestroy", stream)

    def capturing(self) -> bool:
        """Whether TVM's current stream is captured."""
        return self._is_captured(self.stream())

    def synchronize(self) -> None:
        """Wait for what was launched on TVM's current stream."""
        with self._on_device():
            self._cuda("cudaStreamSynchronize", ctypes.c_void_p(self.stream()))

    def finish(self) -> None:
        """Wait for everything on the GPU, so that memory can be given back; what fails here has failed before."""
        with contextlib.suppress(RuntimeError), self._on_device():
            self._cuda("cudaDeviceSynchronize")

    def _is_captured(self, stream: int) -> bool:
        status = ctypes.c_int()
        self._cuda("cudaStreamIsCapturing", ctypes.c_void_p(stream), ctypes.byref(status))
        return status.value != 0

    def _shared_order(self) -> StreamOrder:
        if self._index not in _pool_orders:
            _pool_orders[self._index] = StreamOrder(self._cuda)
        return _pool_orders[self._index]

    def _on_device(self) -> contextlib.AbstractContextManager[None]:
        """Make this CUDA's current device of the thread, which TVM captures and launches graphs on."""
        return self._made_current() if self._several else _NOTHING_TO_DO

    @contextlib.contextmanager
    def _made_current(self) -> Iterator[None]:
        before = ctypes.c_int()
        self._cuda("cudaGetDevice", ctypes.byref(before))
        if before.value == self._index:
            yield
            return
        self._cuda("cudaSetDevice", self._index)
        try:
            yield
        finally:
            self._cuda("cudaSetDevice", before.value)
