"""Sparse or dense, and the reason that the report gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.tuning.making import record
from tvm_sparse.errors import InputError
from tvm_sparse.network.decide import decide
from tvm_sparse.network.match import ConvLayer
from tvm_sparse.tuning.lookup import KnownKernels
from tvm_sparse.tuning.records import Record
from tvm_sparse.workload import ConvWorkload

LARGE = ConvWorkload(1, 64, 14, 14, 64, 3, 3, padding=(1, 1, 1, 1))
POINTWISE = ConvWorkload(1, 16, 14, 14, 32, 1, 1)
DEPTHWISE = ConvWorkload(1, 64, 14, 14, 64, 3, 3, groups=64)
ONE_PIXEL = ConvWorkload(1, 512, 1, 1, 128, 1, 1)
FEW_PIXELS = ConvWorkload(1, 512, 2, 3, 128, 1, 1)
SMALL_BATCH = ConvWorkload(8, 512, 1, 1, 128, 1, 1)


def layer(workload: ConvWorkload | None, density: float, reason: str = "") -> ConvLayer:
    weight = np.zeros(workload.filter_shape if workload else (4, 4), np.float32)
    weight.reshape(-1)[: round(density * weight.size)] = 1
    nothing: Any = None
    return ConvLayer("c", workload, weight, nothing, nothing, reason=reason)


@pytest.mark.parametrize(
    ("workload", "density", "mode", "kind", "direct", "reason"),
    [
        (LARGE, 0.1, "auto", "sparse", True, "90% zeros: 4.8x faster than dense, by estimate"),
        (LARGE, 0.72, "auto", "sparse", True, "28% zeros: 1.1x faster than dense, by estimate"),
        (LARGE, 0.75, "auto", "dense", True, "25% zeros are too few"),
        (LARGE, 1.0, "auto", "dense", True, "0% zeros are too few"),
        (LARGE, 0.0, "auto", "sparse", True, "100% zeros: 10.3x faster than dense, by estimate"),
        (POINTWISE, 0.1, "auto", "sparse", True, "90% zeros: 2.2x faster than dense, by estimate"),
        (POINTWISE, 0.6, "auto", "dense", True, "40% zeros are too few"),
        (DEPTHWISE, 0.3, "auto", "dense", False, "depthwise: too few weights per channel"),
        (ONE_PIXEL, 0.1, "auto", "sparse", True, "90% zeros, of weights that each image uses once"),
        (ONE_PIXEL, 0.3, "auto", "dense", False, "70% zeros, of weights that each image uses once, are too few"),
        (FEW_PIXELS, 0.1, "auto", "dense", False, "only 6 output pixels"),
        (SMALL_BATCH, 0.1, "auto", "dense", False, "90% zeros, of weights that each image uses once, are too few"),
        (SMALL_BATCH, 0.02, "auto", "sparse", True, "98% zeros, of weights that each image uses once"),
        (LARGE, 1.0, "always", "sparse", True, "asked for"),
        (DEPTHWISE, 1.0, "always", "sparse", True, "asked for"),
        (ONE_PIXEL, 1.0, "always", "sparse", True, "asked for"),
        (LARGE, 0.0, "never", "dense", True, "asked for"),
        (DEPTHWISE, 0.0, "never", "dense", False, "asked for"),
        (ONE_PIXEL, 0.0, "never", "dense", False, "asked for"),
    ],
)
def test_decision(workload: ConvWorkload, density: float, mode: str, kind: str, direct: bool, reason: str) -> None:
    decision = decide(layer(workload, density), mode)
    assert (decision.kind, decision.direct, decision.reason) == (kind, direct, reason)


def test_a_gpu_has_a_template_for_one_pixel() -> None:
    for workload in (ONE_PIXEL, SMALL_BATCH):
        assert [decide(layer(workload, density), "auto", gpu=True).direct for density in (0.5, 0.7)] == [True, False]


@pytest.mark.parametrize("mode", ["auto", "always", "never"])
def test_what_no_template_takes_stays_dense_with_the_matchers_reason(mode: str) -> None:
    decision = decide(layer(None, 0.1, "conv3d stays dense"), mode)
    assert (decision.kind, decision.direct, decision.reason) == ("dense", False, "conv3d stays dense")


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(InputError, match="--sparse sometimes: choose one of auto, always, never"):
        decide(layer(LARGE, 0.1), "sometimes")


def known(*records: Record) -> KnownKernels:
    return KnownKernels(records)


FAST = record(workload=LARGE, kind="sparse", time_us=40.0, knobs={"rows": 2})
SLOW = record(workload=LARGE, kind="dense", time_us=55.0, knobs={"rows": 3})


@pytest.mark.parametrize(
    ("records", "mode", "kind", "tuned", "knobs", "reason"),
    [
        ((FAST, SLOW), "auto", "sparse", "exact", {"rows": 2}, "90% zeros: sparse 40 µs, dense 55 µs, measured"),
        ((FAST, SLOW), "never", "dense", "exact", {"rows": 3}, "asked for; knobs measured"),
        ((FAST, SLOW), "always", "sparse", "exact", {"rows": 2}, "asked for; knobs measured"),
        ((FAST,), "never", "dense", "default", {}, "asked for"),
        ((SLOW,), "auto", "sparse", "default", {}, "90% zeros: 4.8x faster than dense, by estimate"),
        (
            (replace(FAST, time_us=60.0), SLOW),
            "auto",
            "dense",
            "exact",
            {"rows": 3},
            "90% zeros: sparse 60 µs, dense 55 µs, measured",
        ),
        (
            (replace(FAST, density=0.05), replace(SLOW, density=0.05)),
            "auto",
            "dense",
            "nearest",
            {"rows": 3},
            "90% zeros: sparse 79.99 µs, dense 55 µs, measured at density 0.05, 0.5 of this layer's",
        ),
        ((replace(FAST, workload=POINTWISE),), "auto", "sparse", "default", {}, None),
    ],
)
def test_measurements_go_before_estimates(
    records: tuple[Record, ...], mode: str, kind: str, tuned: str, knobs: dict, reason: str | None
) -> None:
    decision = decide(layer(LARGE, 0.1), mode, known(*records))
    assert (decision.kind, decision.direct, decision.tuned, decision.knobs) == (kind, True, tuned, knobs)
    assert reason is None or decision.reason == reason


def test_what_no_template_of_ours_runs_is_not_looked_up() -> None:
    measured = record(workload=DEPTHWISE, kind="sparse", time_us=1.0)
    assert decide(layer(DEPTHWISE, 0.1), "auto", known(measured)).direct is False
