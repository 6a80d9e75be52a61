"""Sparse or dense, layer by layer, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass

from tvm_sparse.errors import InputError
from tvm_sparse.network.match import ConvLayer

MODES = ("auto", "always", "never")

#: Share of the multiply-add peak that the templates reach on a dense filter (each load feeds several rows) and on the
#: nonzeros of a sparse one (one load each). Measured on AVX-512 cores; the tuner's records replace this rule.
DENSE_EFFICIENCY = 0.75
SPARSE_EFFICIENCY = 0.45
#: Fewer multiply-adds per output pixel than this and a sparse row does not pay for its own bookkeeping.
SHORTEST_ROW = 2.0
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
    row = workload.c_per_group * workload.r * workload.s
    if workload.n * workload.p * workload.q < FEWEST_PIXELS:
        return Decision("dense", dense, f"only {workload.n * workload.p * workload.q} output pixels")
    if 0 < layer.density * row < SHORTEST_ROW:
        return Decision("dense", dense, f"rows of {layer.density * row:.1f} nonzeros are too short")
    gain = DENSE_EFFICIENCY**-1 / max(layer.density / SPARSE_EFFICIENCY, 1e-6)
    if gain > 1:
        return Decision("sparse", True, f"{1 - layer.density:.0%} zeros: about {min(gain, 99):.1f}x fewer cycles")
    return Decision("dense", dense, f"{1 - layer.density:.0%} zeros are too few")


def _dense(layer: ConvLayer) -> bool:
    """Whether the direct template also runs the layer dense; depthwise and one-pixel layers have rules of their own."""
    workload = layer.workload
    assert workload is not None
    return not layer.depthwise and workload.n * workload.p * workload.q >= FEWEST_PIXELS
