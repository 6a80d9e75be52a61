"""Sparse or dense, and the reason that the report gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tvm_sparse.errors import InputError
from tvm_sparse.network.decide import decide
from tvm_sparse.network.match import ConvLayer
from tvm_sparse.workload import ConvWorkload

LARGE = ConvWorkload(1, 64, 14, 14, 64, 3, 3, padding=(1, 1, 1, 1))
POINTWISE = ConvWorkload(1, 16, 14, 14, 32, 1, 1)
DEPTHWISE = ConvWorkload(1, 64, 14, 14, 64, 3, 3, groups=64)
ONE_PIXEL = ConvWorkload(1, 512, 1, 1, 128, 1, 1)
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
        (ONE_PIXEL, 0.1, "auto", "dense", False, "only 1 output pixels"),
        (SMALL_BATCH, 0.1, "auto", "sparse", True, "90% zeros: 4.8x faster than dense, by estimate"),
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


@pytest.mark.parametrize("mode", ["auto", "always", "never"])
def test_what_no_template_takes_stays_dense_with_the_matchers_reason(mode: str) -> None:
    decision = decide(layer(None, 0.1, "conv3d stays dense"), mode)
    assert (decision.kind, decision.direct, decision.reason) == ("dense", False, "conv3d stays dense")


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(InputError, match="--sparse sometimes: choose one of auto, always, never"):
        decide(layer(LARGE, 0.1), "sometimes")
