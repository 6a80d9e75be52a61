"""CUDA's runtime library, called through ctypes: streams, events and graphs without a Python package for them."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from typing import Any

from tvm_sparse.cuda.paths import load_cudart

_NO_TIMES = 2  # cudaEventDisableTiming
_RELAXED = 2  # cudaStreamCaptureModeRelaxed: work of other streams does not disturb a capture


class CudaRuntime:
    """The functions of CUDA's runtime by their names; a call that fails raises.

    Raises
    ------
    RuntimeError
        There is no such library.
    """

    def __init__(self) -> None:
        name = load_cudart()
        if name is None:
            raise RuntimeError("no CUDA runtime library")
        self._library = ctypes.CDLL(name)
        self._library.cudaGetErrorString.restype = ctypes.c_char_p

    def __call__(self, function: str, *arguments: Any) -> None:
        """Call a function.

        Raises
        ------
        RuntimeError
            CUDA refuses; the message says why.
        """
        code = getattr(self._library, function)(*arguments)
        if code:
            raise RuntimeError(f"{function}: {self._library.cudaGetErrorString(code).decode()}")

    def made(self, function: str, *arguments: Any) -> ctypes.c_void_p:
        """The handle that a function makes, as its first argument."""
        handle = ctypes.c_void_p()
        self(function, ctypes.byref(handle), *arguments)
        return handle


class Graph:
    """What `work` launches on a stream, captured: one launch from then on.

    Raises
    ------
    RuntimeError
        CUDA refuses something, such as capturing an allocation of memory or CUDA's default stream.
    """

    def __init__(self, cuda: CudaRuntime, stream: int, work: Callable[[], object]) -> None:
        self._cuda = cuda
        captured, handle = ctypes.c_void_p(), ctypes.c_void_p(stream)
        cuda("cudaStreamBeginCapture", handle, _RELAXED)
        try:
            work()
        except BaseException:
            with contextlib.suppress(RuntimeError):  # a consequence of the first error, if one at all
                cuda("cudaStreamEndCapture", handle, ctypes.byref(captured))
                cuda("cudaGraphDestroy", captured)
            raise
        cuda("cudaStreamEndCapture", handle, ctypes.byref(captured))
        try:
            self._runnable = cuda.made("cudaGraphInstantiate", captured, ctypes.c_ulonglong(0))
        finally:
            cuda("cudaGraphDestroy", captured)

    def launch(self, stream: int) -> None:
        """Run it behind what the stream was given."""
        self._cuda("cudaGraphLaunch", self._runnable, ctypes.c_void_p(stream))

    def destroy(self) -> None:
        """Give back what it takes."""
        self._cuda("cudaGraphExecDestroy", self._runnable)


class StreamOrder:
    """Lets what is launched on one stream wait for what was launched before on another.

    For work on memory that belongs to no stream, such as that of a network. Not for two threads at once.
    """

    def __init__(self, cuda: CudaRuntime) -> None:
        self._cuda = cuda
        self._done = cuda.made("cudaEventCreateWithFlags", ctypes.c_uint(_NO_TIMES))
        self._last: int | None = None

    def begin(self, stream: int) -> None:
        """To be called before the work is launched on a stream."""
        if self._last is not None and self._last != stream:
            self._cuda("cudaStreamWaitEvent", ctypes.c_void_p(stream), self._done, ctypes.c_uint(0))

    def end(self, stream: int) -> None:
        """To be called when the work has been launched."""
        self._cuda("cudaEventRecord", self._done, ctypes.c_void_p(stream))
        self._last = stream

    def wait(self) -> None:
        """Wait until all of it is done."""
        self._cuda("cudaEventSynchronize", self._done)
