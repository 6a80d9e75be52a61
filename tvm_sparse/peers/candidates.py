"""What is timed beside a network: every form of a dense framework that runs here, warm and ready to be called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_sparse.deploy.runtime import Network
from tvm_sparse.errors import InputError
from tvm_sparse.peers.interleave import Call, Sampler
from tvm_sparse.peers.source import DenseModel

Array = np.ndarray[Any, Any]
TORCH, ONNXRUNTIME = "torch", "onnxruntime"


@dataclass(frozen=True)
class Candidate:
    """One form of a peer.

    Attributes
    ----------
    peer, precision, layout, how : what a record says of it
    call : runs it once; None where it cannot run, and `note` says why
    outputs : what its last call wrote; None for the reference itself
    """

    peer: str
    precision: str
    layout: str
    how: str
    call: Call | None = None
    outputs: Callable[[], Sequence[Array]] | None = None
    note: str = ""


@dataclass(frozen=True)
class LineUp:
    """The candidates, and the outputs that all are held to."""

    candidates: tuple[Candidate, ...]
    reference: str
    expected: Sequence[Array]


@dataclass(frozen=True)
class Compiling:
    """How torch.compile is used: its mode, None to leave it out, and the seconds it may take for a form."""

    mode: str | None = "default"
    limit_s: float = 180.0


def onnxruntime_lineup(network: Network, dense: DenseModel, inputs: dict[str, Array]) -> LineUp:
    """onnxruntime on as many threads as the network; it is the reference too."""
    run = dense.onnxruntime(inputs, network.threads or 1)
    return LineUp((Candidate(ONNXRUNTIME, "float32", "NCHW", "graph optimised", run),), "onnxruntime", run())


def torch_lineup(
    network: Network,
    dense: DenseModel,
    inputs: dict[str, Array],
    compiling: Compiling,
    sampler: Callable[[Call], Sampler],
    tell: Callable[[str], None],
) -> LineUp:
    """The eager forms, and torch.compile in the faster layout of each precision; the reference is torch in float64."""
    from tvm_sparse.peers.torch_forms import COMPILED, DenseTorch, Form

    torch_peer = DenseTorch(dense.torch_module, [inputs[spec.name] for spec in network.inputs], network.device)
    found: list[Candidate] = []
    quickest: dict[str, tuple[float, str]] = {}

    def add(form: Form) -> None:
        tell(f"torch: {form}")
        about = (TORCH, form.precision, form.layout)
        try:
            ready = torch_peer.ready(form, compiling.mode or "default", compiling.limit_s)
        except Exception as error:  # what torch cannot run is a finding
            found.append(
                Candidate(*about, form.how, note=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
            )
            return
        found.append(Candidate(*about, form.how + ", CUDA graph" * ready.graph, ready.call, ready.outputs))
        known = quickest.get(form.precision)
        us = sampler(ready.call)()
        if known is None or us < known[0]:
            quickest[form.precision] = us, form.layout

    for form in torch_peer.forms():
        add(form)
    for precision, (_, layout) in list(quickest.items()) if compiling.mode else ():
        add(Form(precision, layout, COMPILED))
    return LineUp(tuple(found), "torch in float64", torch_peer.exact())


@contextmanager
def torch_ready(network: Network) -> Iterator[None]:
    """torch on the network's device and on as many threads.

    Raises
    ------
    InputError
        torch is not installed, or knows no GPU.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError("torch is not installed: pip install tvm-sparse[torch]") from error
    if network.device == "cpu":
        before = torch.get_num_threads()
        torch.set_num_threads(network.threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)
        return
    if not torch.cuda.is_available():
        raise InputError(f"torch {torch.__version__} sees no GPU, and the library runs on {network.device}")
    with torch.cuda.device(network.device):
        yield
