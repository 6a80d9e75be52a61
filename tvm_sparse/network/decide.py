"""Sparse or dense, layer by layer, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass, field

from tvm_sparse.errors import InputError
from tvm_sparse.network.match import ConvLayer
from tvm_sparse.tuning.lookup import KnownKernels, Match
from tvm_sparse.tuning.records import Knobs

MODES = ("auto", "always", "never")

#: Estimated time of a sparse layer over that of the same layer dense: PER_DENSITY * density, for the nonzeros, plus
#: PER_CHUNK, for starting a row in every chunk, plus ROW_START weights' worth a row, for starting it at all. Fitted to
#: benchmarks/crossover.py on an AVX-512 CPU; what the tuner measured goes before it.
PER_DENSITY, PER_CHUNK, ROW_START = 1.1, 0.09, 4.0
#: A smaller estimated gain is not worth being wrong about.
WORTH = 1.1
#: A layer of one output pixel, such as a linear one, uses each weight once an image, so bytes are what counts. It runs
#: sparse up to this density on a GPU, which has a template for it, and up to this density over the number of images on
#: a CPU: on one with AVX-512, 10 % of 4096x4096 weights take 0.25, 0.7 and 1.4 of dense ones' time for 1, 2, 8 images.
ROWS_ON_GPU, ROWS_ON_CPU = 0.6, 0.2
#: With fewer output pixels than this, vector lanes and threads stay idle: a matrix product serves such a layer better.
FEWEST_PIXELS = 8


@dataclass(frozen=True)
class Decision:
    """`kind` is "sparse" or "dense"; `direct` says whether direct_conv2d runs it (else TVM's operator, scheduled).

    `tuned` says where template and knobs come from: records of the very layer ("exact") or of the nearest density of
    its shape ("nearest"); with "default" there are none, and rules choose them.
    """

    kind: str
    direct: bool
    reason: str
    tuned: str = "default"
    template: str = ""
    knobs: Knobs = field(default_factory=dict)


def check_mode(mode: str) -> None:
    """Refuse a mode that is none, before any long work.

    Raises
    ------
    InputError
        On an unknown mode.
    """
    if mode not in MODES:
        raise InputError(f"unknown mode --sparse {mode}: choose one of {', '.join(MODES)}")


def decide(layer: ConvLayer, mode: str, known: KnownKernels | None = None, gpu: bool = False) -> Decision:
    """How to run a layer.

    Parameters
    ----------
    mode : "auto" compares measured times or, without any, estimated ones; "always" takes every layer a template can
        take, "never" none.
    known : what was measured for the target
    gpu : whether the target is a GPU, which has a template for layers of a single output pixel

    Raises
    ------
    InputError
        On an unknown mode.
    """
    check_mode(mode)
    if layer.workload is None:
        return Decision("dense", False, layer.reason)
    decision = _by_rule(layer.in_model, mode, gpu)
    match = known.find(layer.workload, layer.density) if known is not None and decision.direct else None
    return decision if match is None else _measured(layer, decision, match, mode)


def _measured(layer: ConvLayer, rule: Decision, match: Match, mode: str) -> Decision:
    """The decision of a rule, corrected and filled in from measurements."""
    kind, reason = rule.kind, rule.reason
    if mode == "auto" and match.sparse_us and match.dense_us:
        kind = "sparse" if match.sparse_us < match.dense_us else "dense"
        times = f"sparse {match.sparse_us:.4g} µs, dense {match.dense_us:.4g} µs"
        reason = f"{layer.sparsity:.0%} zeros: {times}, {match.origin}"
    else:
        reason = f"{reason}; knobs {match.origin}"
    record = match.of(kind)
    if record is None:
        return rule
    return Decision(kind, True, reason, match.match, record.template, dict(record.knobs))


def _by_rule(layer: ConvLayer, mode: str, gpu: bool) -> Decision:
    """Without measurements."""
    assert layer.workload is not None
    if mode == "always":
        return Decision("sparse", True, "asked for")
    dense = _dense(layer, gpu)
    if mode == "never":
        return Decision("dense", dense, "asked for")
    if layer.depthwise:
        return Decision("dense", dense, "depthwise: too few weights per channel")
    workload = layer.workload
    if workload.p * workload.q == 1:
        few = layer.density <= (ROWS_ON_GPU if gpu else ROWS_ON_CPU / workload.n)
        weights = f"{1 - layer.density:.0%} zeros, of weights that each image uses once"
        return Decision("sparse" if few else "dense", few, weights if few else f"{weights}, are too few")
    if workload.n * workload.p * workload.q < FEWEST_PIXELS:
        return Decision("dense", dense, f"only {workload.n * workload.p * workload.q} output pixels")
    row = workload.c_per_group * workload.r * workload.s
    gain = 1 / (PER_DENSITY * layer.density + PER_CHUNK + ROW_START / row)
    zeros = f"{1 - layer.density:.0%} zeros"
    if gain >= WORTH:
        return Decision("sparse", True, f"{zeros}: {gain:.1f}x faster than dense, by estimate")
    return Decision("dense", dense, f"{zeros} are too few")


def _dense(layer: ConvLayer, gpu: bool) -> bool:
    """Whether the direct template also runs the layer dense; depthwise and one-pixel layers have rules of their own."""
    workload = layer.workload
    assert workload is not None
    if workload.p * workload.q == 1:
        return False
    return not layer.depthwise and workload.n * workload.p * workload.q >= FEWEST_PIXELS
