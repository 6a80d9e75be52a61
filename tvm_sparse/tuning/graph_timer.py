"""Time calls of a few microseconds on a GPU: captured in a CUDA graph, so that launching them costs the host nothing.

Timed one by one, a small kernel takes as long as its launch. A compiled network runs from a CUDA graph too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tvm_sparse.cuda.paths import load_cudart

_RELAXED = 2  # cudaStreamCaptureModeRelaxed: work of other streams does not disturb a capture


class GraphTimer:
    """A stream of its own on one GPU, and calls on it.

    Raises
    ------
    RuntimeError
        CUDA's runtime is missing or refuses something, such as capturing a call that allocates memory.
    """

    def __init__(self, index: int) -> None:
        name = load_cudart()
        if name is None:
            raise RuntimeError("no CUDA runtime library")
        self._cuda = ctypes.CDLL(name)
        self._cuda.cudaGetErrorString.restype = ctypes.c_char_p
        self._index = index
        self._check("cudaSetDevice", index)
        self._stream = self._made("cudaStreamCreate")
        self._begin, self._end = self._made("cudaEventCreate"), self._made("cudaEventCreate")

    def calls_us(self, call: Callable[[], Any], *, calls: int, repeats: int) -> list[float]:
        """Microseconds of one of `calls` captured calls, `repeats` times; the call has run before."""
        with self._current(), self._captured(call, calls) as graph:
            self._check("cudaGraphLaunch", graph, self._stream)
            times = []
            for _ in range(repeats):
                self._check("cudaEventRecord", self._begin, self._stream)
                self._check("cudaGraphLaunch", graph, self._stream)
                self._check("cudaEventRecord", self._end, self._stream)
                self._check("cudaEventSynchronize", self._end)
                elapsed_ms = ctypes.c_float()
                self._check("cudaEventElapsedTime", ctypes.byref(elapsed_ms), self._begin, self._end)
                times.append(elapsed_ms.value * 1000 / calls)
            return times

    def warm(self, call: Callable[[], Any]) -> None:
        """Run a call once on the stream; its workspace comes from TVM's pool from then on."""
        with self._current():
            call()
            self._check("cudaStreamSynchronize", self._stream)

    @contextmanager
    def _captured(self, call: Callable[[], Any], calls: int) -> Iterator[ctypes.c_void_p]:
        graph, runnable = ctypes.c_void_p(), ctypes.c_void_p()
        self._check("cudaStreamBeginCapture", self._stream, _RELAXED)
        try:
            for _ in range(calls):
                call()
        finally:
            self._check("cudaStreamEndCapture", self._stream, ctypes.byref(graph))
        try:
            self._check("cudaGraphInstantiate", ctypes.byref(runnable), graph, ctypes.c_ulonglong(0))
            yield runnable
        finally:
            if runnable:
                self._check("cudaGraphExecDestroy", runnable)
            self._check("cudaGraphDestroy", graph)

    @contextmanager
    def _current(self) -> Iterator[None]:
        """TVM launches on the timer's stream."""
        import tvm_ffi

        with tvm_ffi.use_raw_stream(tvm_ffi.device("cuda", self._index), self._stream.value or 0):
            yield

    def _made(self, function: str) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        self._check(function, ctypes.byref(handle))
        return handle

    def _check(self, function: str, *arguments: Any) -> None:
        code = getattr(self._cuda, function)(*arguments)
        if code:
            raise RuntimeError(f"{function}: {self._cuda.cudaGetErrorString(code).decode()}")
