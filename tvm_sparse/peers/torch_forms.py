"""A dense network in torch, in each form its user may choose: precision, layout, eager or through torch.compile.

On a GPU every form is captured in a CUDA graph where it can be, on a fixed input: replaying it costs the host nothing.
"""

from __future__ import annotations

import copy
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tvm_sparse.peers.interleave import Call

PRECISIONS = ("float32", "TF32", "float16")
LAYOUTS = ("NCHW", "channels_last")
EAGER, COMPILED = "eager", "torch.compile"
WARM_UPS = 3


@dataclass(frozen=True)
class Form:
    """One way to run the network; `how` is "eager" or "torch.compile"."""

    precision: str
    layout: str
    how: str = EAGER

    def __str__(self) -> str:
        return f"{self.precision}, {self.layout}, {self.how}"


@dataclass(frozen=True)
class Ready:
    """A form that is warm: `call` runs it once, `outputs` are what its last call wrote, `graph` whether it is one."""

    call: Call
    outputs: Callable[[], list[np.ndarray[Any, Any]]]
    graph: bool


class DenseTorch:
    """A network's forms on one device.

    Parameters
    ----------
    make
        Gives a module in float32 on a device.
    inputs
        float32 (or integer) arrays in the module's order.
    device
        "cpu" or "cuda:0".
    """

    def __init__(self, make: Callable[[str], Any], inputs: Sequence[np.ndarray[Any, Any]], device: str) -> None:
        self._device, self._module = device, make(device)
        self._inputs = [torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in inputs]

    def forms(self) -> list[Form]:
        """The eager forms; a CPU computes in float32."""
        precisions = PRECISIONS if self._device.startswith("cuda") else PRECISIONS[:1]
        return [Form(precision, layout) for precision in precisions for layout in LAYOUTS]

    def ready(self, form: Form, mode: str = "default", limit_s: float = 120.0) -> Ready:
        """Convert, compile if the form says so (in torch's `mode`, within `limit_s` seconds), warm up and capture.

        Raises
        ------
        Exception
            Whatever torch raises where it cannot; TimeoutError where torch.compile takes too long.
        """
        dtype = torch.float16 if form.precision == "float16" else torch.float32
        module, inputs = self._converted(dtype, form.layout)
        latest: list[Any] = []

        def call() -> None:
            with precision_flags(tf32=form.precision == "TF32"), torch.no_grad():
                latest[:] = [module(*inputs)]

        if form.how == COMPILED:
            torch._dynamo.reset()
            module = torch.compile(module, mode=mode, dynamic=False)
            with _silenced("torch._inductor", "torch._dynamo"), time_limit(limit_s, "torch.compile"):
                call()
        replay = _captured(call) if self._device.startswith("cuda") else None
        for _ in range(WARM_UPS):
            (replay or call)()
        return Ready(replay or call, lambda: _arrays(latest[0]), replay is not None)

    def exact(self) -> list[np.ndarray[Any, Any]]:
        """The outputs in float64."""
        module, inputs = self._converted(torch.float64, LAYOUTS[0])
        with torch.no_grad():
            return _arrays(module(*inputs))

    def _converted(self, dtype: Any, layout: str) -> tuple[Any, list[Any]]:
        format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        module = copy.deepcopy(self._module).to(dtype)
        # A memory format is for tensors of four axes.
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.dim() == 4:
                tensor.data = tensor.data.contiguous(memory_format=format)
        floats = [x.to(dtype) if x.is_floating_point() else x for x in self._inputs]
        return module, [x.contiguous(memory_format=format) if x.dim() == 4 else x for x in floats]


@contextmanager
def precision_flags(*, tf32: bool) -> Iterator[None]:
    """Allow or forbid TF32, and let cuDNN try its algorithms."""
    flags = (
        (torch.backends.cudnn, "allow_tf32", tf32),
        (torch.backends.cuda.matmul, "allow_tf32", tf32),
        (torch.backends.cudnn, "benchmark", True),
    )
    before = [getattr(place, name) for place, name, _ in flags]
    for place, name, value in flags:
        setattr(place, name, value)
    try:
        yield
    finally:
        for (place, name, _), value in zip(flags, before, strict=True):
            setattr(place, name, value)


@contextmanager
def time_limit(seconds: float, what: str) -> Iterator[None]:
    """Raise TimeoutError inside the block when its time is up; only the main thread can be interrupted so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    expired = []

    def expire(*_: Any) -> None:
        expired.append(True)
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except Exception:
        if expired:  # torch wraps what is raised inside it
            raise TimeoutError(f"{what} took longer than {seconds:g} s") from None
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _silenced(*loggers: str) -> Iterator[None]:
    """What torch logs of a failure is in the exception too."""
    found = [logging.getLogger(name) for name in loggers]
    before = [logger.level for logger in found]
    for logger in found:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(found, before, strict=True):
            logger.setLevel(level)


def _captured(call: Call) -> Call | None:
    """What replays a CUDA graph of a call, whose outputs stay where they are; None where torch cannot capture it."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            call()
    except RuntimeError:
        torch.cuda.synchronize()
        return None

    def replay(owner: Call = call) -> None:  # the call owns the weights and inputs that the graph reads
        graph.replay()

    return replay


def _arrays(result: Any) -> list[np.ndarray[Any, Any]]:
    leaves, _ = torch.utils._pytree.tree_flatten(result)
    return [leaf.detach().cpu().double().numpy() for leaf in leaves]
