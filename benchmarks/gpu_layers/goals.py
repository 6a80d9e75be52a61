"""What the GPU schedules are to reach, each figure computed from the record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.gpu_layers.layers import REFERENCE
from benchmarks.gpu_layers.report import ESCOIN, Measured, Report, geometric_mean, ratios

THREE_BY_THREE = tuple(name for name in REFERENCE if not name.startswith("r50") or name.endswith("_3"))


@dataclass(frozen=True)
class Found:
    """A figure, and of how many of the cases it should cover it was made."""

    value: float | None
    cases: int
    of: int


@dataclass(frozen=True)
class Goal:
    """`want` is to be reached, `hope` is where we would like to be; `at_most` turns both round. `unit`: x, us or %."""

    what: str
    find: Callable[[Report], Found]
    want: float
    hope: float | None = None
    unit: str = "x"
    at_most: bool = False

    def met(self, value: float, limit: float) -> bool:
        return value <= limit if self.at_most else value >= limit


def _mean(peer: str, batch: int, sparsity: float) -> Callable[[Report], Found]:
    return _over_ratios(geometric_mean, peer, batch, sparsity)


def _least(peer: str, batch: int, sparsity: float) -> Callable[[Report], Found]:
    return _over_ratios(_smallest, peer, batch, sparsity)


def _smallest(values: Sequence[float]) -> float | None:
    return min(values, default=None)


def _over_ratios(
    reduce: Callable[[list[float]], float | None], peer: str, batch: int, sparsity: float
) -> Callable[[Report], Found]:
    def find(report: Report) -> Found:
        values = ratios(report.reference(REFERENCE, batch, sparsity), peer)
        return Found(reduce(values), len(values), report.known_by(peer, REFERENCE, batch))

    return find


def _slowest(
    layers: Sequence[str], batch: int, sparsity: float, dtype: str = "float32", template: str = ""
) -> Callable[[Report], Found]:
    """Our longest time over the layers; with `template`, what was chosen must be that one."""

    def find(report: Report) -> Found:
        cases = report.reference(layers, batch, sparsity, dtype)
        times = [case.us for case in cases if not template or case.record["ours"]["template"] == template]
        return Found(max(times, default=None), len(times), len(layers))

    return find


def _real(reduce: Callable[[list[float]], float | None]) -> Callable[[Report], Found]:
    """The speed with published filters over that with random ones of as many nonzeros, in percent."""

    def find(report: Report) -> Found:
        values = [100 * like.us / real.us for real, like in real_pairs(report)]
        return Found(reduce(values), len(values), len(report.measured(mask="real", dtype="float32")))

    return find


def real_pairs(report: Report) -> list[tuple[Measured, Measured]]:
    """Cases of published filters, each with the random one like it; float32."""
    like = {(m.record["source"], m.record["batch"]): m for m in report.measured(mask="like", dtype="float32")}
    return [
        (real, like[key])
        for real in report.measured(mask="real", dtype="float32")
        if (key := (real.record["source"], real.record["batch"])) in like
    ]


def _least_share(batch: int) -> Callable[[Report], Found]:
    def find(report: Report) -> Found:
        cases = report.reference(THREE_BY_THREE, batch, 0.9)
        shares = [100 * case.record["ours"]["share_of_bound"]["operands"] for case in cases]
        return Found(min(shares, default=None), len(shares), len(THREE_BY_THREE))

    return find


GOALS = (
    Goal("batch 1, 90 %: over cuDNN float32, geometric mean", _mean("cudnn_fp32", 1, 0.9), 5, 7),
    Goal("batch 1, 90 %: over cuDNN TF32, geometric mean", _mean("cudnn_tf32", 1, 0.9), 1.8, 2.3),
    Goal("batch 1, 90 %: over cuDNN float16, geometric mean", _mean("cudnn_fp16", 1, 0.9), 1.4, 1.8),
    Goal("batch 1, 90 %: over cuDNN float16, slowest layer", _least("cudnn_fp16", 1, 0.9), 1),
    Goal("batch 1, 90 %: longest time of a layer", _slowest(REFERENCE, 1, 0.9), 6.5, 4.5, "us", True),
    Goal("batch 1, 90 %: over the ported Escoin, slowest layer", _least(ESCOIN, 1, 0.9), 1.3),
    Goal("batch 32, 90 %: over cuDNN float32, geometric mean", _mean("cudnn_fp32", 32, 0.9), 3.3, 4.5),
    Goal("batch 32, 90 %: over cuSPARSE with im2col, geometric mean", _mean("cusparse_im2col", 32, 0.9), 6),
    Goal("batch 32, 90 %: over the ported Escoin, geometric mean", _mean(ESCOIN, 32, 0.9), 5),
    Goal(
        "batch 32, 90 %: r50_56_3 by the pattern-specialised template",
        _slowest(("r50_56_3",), 32, 0.9, template="cuda_pattern"),
        35,
        None,
        "us",
        True,
    ),
    Goal("batch 32, 95 %: over cuDNN TF32, geometric mean", _mean("cudnn_tf32", 32, 0.95), 1.3, 1.8),
    Goal("batch 128, 90 %: over cuDNN float32, geometric mean", _mean("cudnn_fp32", 128, 0.9), 2.6),
    *(
        Goal(
            f"batch 32, {dtype}, {sparsity:.0%}: r50_14_3",
            _slowest(("r50_14_3",), 32, sparsity, dtype),
            us,
            None,
            "us",
            True,
        )
        for dtype in ("float16", "bfloat16")
        for sparsity, us in ((0.9, 42.0), (0.95, 25.0))
    ),
    Goal(
        "published filters: speed over random ones, slowest",
        _real(_smallest),
        85,
        None,
        "%",
    ),
    Goal("published filters: speed over random ones, geometric mean", _real(geometric_mean), 85, None, "%"),
    Goal("batch 32, 90 %: share of the operand bound on the 3x3 layers, least", _least_share(32), 60, None, "%"),
)


def verdict(goal: Goal, found: Found) -> str:
    """Reached or missed, and what of it is not measured."""
    if found.value is None:
        return "not measured"
    if goal.met(found.value, goal.want):
        text = "**reached**" + (", and more" if goal.hope is not None and goal.met(found.value, goal.hope) else "")
    else:
        text = "missed"
    return text if found.cases == found.of else f"{text} so far: {found.cases} of {found.of}"
