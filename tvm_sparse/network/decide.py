"""Sparse or dense, layer by layer, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass

from tvm_sparse.errors import InputError
from tvm_sparse.network.match import ConvLayer

MODES = ("auto", "always", "never")

#: Estimated time of a sparse layer over that of the same layer dense: PER_DENSITY * density, for the nonzeros, plus
#: PER_CHUNK, for starting a row in every chunk, plus ROW_START weights' worth a row, for starting it at all. Fitted to
#: benchmarks/crossover.py on an AVX-512 CPU; the tuner's records replace it.
PER_DENSITY, PER_CHUNK, ROW_START = 1.1, 0.09, 4.0
#: A smaller estimated gain is not worth being wrong about.
WORTH = 1.1
#: With fewer output pixels than this, vector lanes and threads stay idle: a matrix product serves such a layer better.
FEWEST_PIXELS = 8


@dataclass(frozen=True)
class Decision:
    """`kind` is "sparse" or "dense"; `direct` says whether direct_conv2d runs it (else TVM's operator, scheduled)."""

    kind: str
    direct: bool
    reason: str


def check_mode(mode: str) -> None:
    """Refuse a mode that is none, before any long work.

    Raises
    ------
    InputError
        On an unknown mode.
    """
    if mode not in MODES:
        raise InputError(f"unknown mode --sparse {mode}: choose one of {', '.join(MODES)}")


def decide(layer: ConvLayer, mode: str) -> Decision:
    """How to run a layer.

    Parameters
    ----------
    mode : "auto" compares estimated times, "always" takes every layer a template can take, "never" none.

    Raises
    ------
    InputError
        On an unknown mode.
    """
    check_mode(mode)
    if layer.workload is None:
        return Decision("dense", False, layer.reason)
    if mode == "always":
        return Decision("sparse", True, "asked for")
    dense = _dense(layer)
    if mode == "never":
        return Decision("dense", dense, "asked for")
    if layer.depthwise:
        return Decision("dense", dense, "depthwise: too few weights per channel")
    workload = layer.workload
    if workload.n * workload.p * workload.q < FEWEST_PIXELS:
        return Decision("dense", dense, f"only {workload.n * workload.p * workload.q} output pixels")
    row = workload.c_per_group * workload.r * workload.s
    gain = 1 / (PER_DENSITY * layer.density + PER_CHUNK + ROW_START / row)
    zeros = f"{1 - layer.density:.0%} zeros"
    if gain >= WORTH:
        return Decision("sparse", True, f"{zeros}: {gain:.1f}x faster than dense, by estimate")
    return Decision("dense", dense, f"{zeros} are too few")


def _dense(layer: ConvLayer) -> bool:
    """Whether the direct template also runs the layer dense; depthwise and one-pixel layers have rules of their own."""
    workload = layer.workload
    assert workload is not None
    return not layer.depthwise and workload.n * workload.p * workload.q >= FEWEST_PIXELS
