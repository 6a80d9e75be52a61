"""Time calls of a few microseconds on a GPU: captured in a CUDA graph, so that launching them costs the host nothing.

Timed one by one, a small kernel takes as long as its launch. A compiled network runs from a CUDA graph too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tvm_sparse.cuda.runtime import CudaRuntime

_RELAXED = 2  # cudaStreamCaptureModeRelaxed: work of other streams does not disturb a capture

#: Launches before the timed ones: the clock of a GPU that has waited takes some milliseconds to rise.
WARM_UPS = 3


class GraphTimer:
    """A stream of its own on one GPU, and calls on it.

    Raises
    ------
    RuntimeError
        CUDA's runtime is missing or refuses something, such as capturing a call that allocates memory.
    """

    def __init__(self, index: int) -> None:
        self._cuda = CudaRuntime()
        self._index = index
        self._cuda("cudaSetDevice", index)
        self._stream = self._cuda.made("cudaStreamCreate")
        self._begin, self._end = self._cuda.made("cudaEventCreate"), self._cuda.made("cudaEventCreate")

    def calls_us(self, call: Callable[[int], Any], *, calls: int, repeats: int) -> list[float]:
        """Microseconds of one of `calls` captured calls, which are numbered, `repeats` times; all have run before."""
        with self._current(), self._captured(call, calls) as graph:
            for _ in range(WARM_UPS):
                self._cuda("cudaGraphLaunch", graph, self._stream)
            times = []
            for _ in range(repeats):
                self._cuda("cudaEventRecord", self._begin, self._stream)
                self._cuda("cudaGraphLaunch", graph, self._stream)
                self._cuda("cudaEventRecord", self._end, self._stream)
                self._cuda("cudaEventSynchronize", self._end)
                elapsed_ms = ctypes.c_float()
                self._cuda("cudaEventElapsedTime", ctypes.byref(elapsed_ms), self._begin, self._end)
                times.append(elapsed_ms.value * 1000 / calls)
            return times

    def warm(self, call: Callable[[], Any]) -> None:
        """Run a call once on the stream; its workspace comes from TVM's pool from then on."""
        with self._current():
            call()
            self._cuda("cudaStreamSynchronize", self._stream)

    @contextmanager
    def _captured(self, call: Callable[[int], Any], calls: int) -> Iterator[ctypes.c_void_p]:
        graph, runnable = ctypes.c_void_p(), ctypes.c_void_p()
        self._cuda("cudaStreamBeginCapture", self._stream, _RELAXED)
        try:
            for number in range(calls):
                call(number)
        finally:
            self._cuda("cudaStreamEndCapture", self._stream, ctypes.byref(graph))
        try:
            self._cuda("cudaGraphInstantiate", ctypes.byref(runnable), graph, ctypes.c_ulonglong(0))
            yield runnable
        finally:
            if runnable:
                self._cuda("cudaGraphExecDestroy", runnable)
            self._cuda("cudaGraphDestroy", graph)

    @contextmanager
    def _current(self) -> Iterator[None]:
        """TVM launches on the timer's stream."""
        import tvm_ffi

        with tvm_ffi.use_raw_stream(tvm_ffi.device("cuda", self._index), self._stream.value or 0):
            yield
