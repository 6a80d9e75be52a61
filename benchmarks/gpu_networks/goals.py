"""What whole networks are to reach on an H200, each figure computed from the record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.gpu_layers.goals import Found, Goal
from benchmarks.gpu_networks.cases import LINEAR_TOO, PUBLISHED, SEEDED
from benchmarks.gpu_networks.report import Measured, Report

Find = Callable[[Report], Found]
PAPER = ("alexnet", "googlenet")


def _one(value: float | None) -> Found:
    return Found(value, int(value is not None), 1)


def _time(network: str, batch: int) -> Find:
    def find(report: Report) -> Found:
        case = report.case(network, batch)
        return _one(case and case.us)

    return find


def _over(network: str, batch: int, peer: str, *, layout: str = "", **which: Any) -> Find:
    """How many times faster than torch's fastest eager form in the precision `peer`; with `layout`, in that one.

    `which` are further fields of the case.
    """

    def find(report: Report) -> Found:
        case = report.case(network, batch, **which)
        return _one(case and case.ratio(peer, layouts=[layout] if layout else ()))

    return find


def _largest(value: Callable[[Measured], float | None]) -> Find:
    """Over all cases that have the value."""

    def find(report: Report) -> Found:
        cases = report.measured()
        values = [found for case in cases if (found := value(case)) is not None]
        return Found(max(values, default=None), len(values), len(values))

    return find


def _endurance(name: str) -> Callable[[Measured], float | None]:
    def value(case: Measured) -> float | None:
        found = case.record.get("endurance", {}).get(name)
        return None if found is None else float(found)

    return value


def _strict_error(case: Measured) -> float | None:
    return case.error if case.record["precision"] == "float32" else None


def _host_us(case: Measured) -> float:
    return float(case.record["ours"]["host_us"])


GOALS = (
    Goal("ResNet-50, batch 1", _time("resnet50", 1), 350, 250, "us", True),
    Goal("ResNet-50, batch 1: over cuDNN float32", _over("resnet50", 1, "float32"), 6),
    Goal("ResNet-50, batch 1: over cuDNN float16", _over("resnet50", 1, "float16"), 1.8),
    Goal("ResNet-50, batch 32: over cuDNN float32", _over("resnet50", 32, "float32"), 3.5),
    Goal("ResNet-50, batch 32: over cuDNN TF32", _over("resnet50", 32, "TF32"), 1.3),
    *(
        Goal(
            f"ResNet-50, batch 32, {precision} storage, {sparsity:.0%} zeros: over cuDNN float16",
            _over("resnet50", 32, "float16", sparsity=sparsity, precision=precision),
            want,
        )
        for precision in ("float16", "bfloat16")
        for sparsity, want in ((0.9, 1.0), (0.95, 1.4))
    ),
    *(
        Goal(f"{title}, batch {batch}: over cuDNN {precision}", _over(network, batch, precision, weights=weights), want)
        for network, weights, title in (
            ("alexnet", SEEDED, "AlexNet, linear layers dense"),
            ("alexnet", LINEAR_TOO, "AlexNet, linear layers pruned too"),
            ("googlenet", SEEDED, "GoogLeNet"),
        )
        for batch, precision, want in ((1, "float32", 4.0), (1, "float16", 1.5), (32, "float32", 3.0))
    ),
    *(
        Goal(
            f"MobileNetV1, published weights, batch {batch}: over torch float32 channels-last",
            _over("mobilenetv1", batch, "float32", weights=PUBLISHED, layout="channels_last"),
            1,
        )
        for batch in (1, 32)
    ),
    Goal("host time of a call, longest", _largest(_host_us), 30, None, "us", True),
    Goal("relative error in float32, largest", _largest(_strict_error), 1e-4, None, "", True),
    Goal(
        "10 000 calls: growth of device memory",
        _largest(_endurance("device_growth_bytes")),
        0,
        None,
        "bytes",
        True,
    ),
    Goal(
        "two threads, two instances: calls with another result",
        _largest(_endurance("wrong_in_threads")),
        0,
        None,
        "",
        True,
    ),
)
