"""Time calls of a few microseconds on a GPU: captured in a CUDA graph, so that launching them costs the host nothing.

Timed one by one, a small kernel takes as long as its launch. A compiled network runs from a CUDA graph too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from tvm_sparse.cuda.runtime import CudaRuntime, Graph

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
        self.stream: int = self._cuda.made("cudaStreamCreate").value or 0
        self._events: list[ctypes.c_void_p] = []

    def calls_us(self, call: Callable[[int], Any], *, calls: int, repeats: int) -> list[float]:
        """Microseconds of one of `calls` captured calls, which are numbered, `repeats` times; all have run before."""
        with self.current(), self.captured(call, calls) as replay:
            for _ in range(WARM_UPS):
                replay()
            return [self.between_events([replay])[0] / calls for _ in range(repeats)]

    def warm(self, call: Callable[[], Any]) -> None:
        """Run a call once on the stream; its workspace comes from TVM's pool from then on."""
        with self.current():
            call()
            self._cuda("cudaStreamSynchronize", ctypes.c_void_p(self.stream))

    @contextmanager
    def current(self) -> Iterator[None]:
        """TVM launches on the timer's stream."""
        import tvm_ffi

        with tvm_ffi.use_raw_stream(tvm_ffi.device("cuda", self._index), self.stream):
            yield

    @contextmanager
    def captured(self, call: Callable[[int], Any], calls: int) -> Iterator[Callable[[], None]]:
        """A function that launches the graph of `calls` numbered calls; while `current`."""
        graph = Graph(self._cuda, self.stream, lambda: [call(number) for number in range(calls)])
        try:
            yield lambda: graph.launch(self.stream)
        finally:
            graph.destroy()

    def between_events(self, calls: list[Callable[[], Any]]) -> list[float]:
        """Microseconds that each of the calls takes on the device, all of them enqueued one behind the other."""
        while len(self._events) <= len(calls):
            self._events.append(self._cuda.made("cudaEventCreate"))
        first, *others = events = self._events[: len(calls) + 1]
        self._record(first)
        for call, event in zip(calls, others, strict=True):
            call()
            self._record(event)
        self._cuda("cudaEventSynchronize", events[-1])
        return [self._elapsed_us(begin, end) for begin, end in pairwise(events)]

    def _record(self, event: ctypes.c_void_p) -> None:
        self._cuda("cudaEventRecord", event, ctypes.c_void_p(self.stream))

    def _elapsed_us(self, begin: ctypes.c_void_p, end: ctypes.c_void_p) -> float:
        elapsed_ms = ctypes.c_float()
        self._cuda("cudaEventElapsedTime", ctypes.byref(elapsed_ms), begin, end)
        return elapsed_ms.value * 1000
