"""Pooling and depthwise convolution of any geometry against a float64 direct evaluation, outputs poisoned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tvm import relax, te, tirx, topi

from tests.schedules.rules.programs import cpu_target, is_scheduled, run_prim_func
from tvm_sparse.schedules.rules import rules_for, schedule_func
from tvm_sparse.schedules.rules.window_pattern import match_window


@dataclass(frozen=True)
class Geometry:
    n: int
    c: int
    h: int
    w: int
    r: int
    s: int
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int, int, int]
    multiplier: int


@st.composite
def geometries(draw: Any) -> Geometry:
    r, s = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 3)))
    padding = tuple(draw(st.integers(0, 2)) for _ in range(4))
    h = draw(st.integers((r - 1) * dilation[0] + 1, 20))
    w = draw(st.integers((s - 1) * dilation[1] + 1, 40))
    return Geometry(
        draw(st.integers(1, 2)), draw(st.integers(1, 5)), h, w, r, s,
        draw(st.tuples(st.integers(1, 3), st.integers(1, 3))), dilation, padding, draw(st.integers(1, 3)),
    )  # fmt: skip


def patches(x: np.ndarray, g: Geometry, fill: float) -> np.ndarray:
    """(n, c, p, q, r, s) windows of the padded input."""
    top, left, bottom, right = g.padding
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    reach = ((g.r - 1) * g.dilation[0] + 1, (g.s - 1) * g.dilation[1] + 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(2, 3))
    return windows[:, :, :: g.stride[0], :: g.stride[1], :: g.dilation[0], :: g.dilation[1]]


def scheduled(func: tirx.PrimFunc) -> tirx.PrimFunc:
    target = cpu_target()
    result = schedule_func(func.without_attr("global_symbol"), target, rules_for(target))
    assert is_scheduled(result)
    return result


SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@SETTINGS
@given(geometries())
def test_depthwise(g: Geometry) -> None:
    rng = np.random.default_rng(1)
    x = te.placeholder((g.n, g.c, g.h, g.w), name="x")
    f = te.placeholder((g.c * g.multiplier, 1, g.r, g.s), name="f")
    b = te.placeholder((1, g.c * g.multiplier, 1, 1), name="b")
    y = topi.nn.group_conv2d_nchw(x, f, g.stride, g.padding, g.dilation, g.c)
    func = te.create_prim_func([x, f, b, topi.nn.relu(topi.add(y, b))])
    arrays = [rng.standard_normal([int(e) for e in t.shape]).astype("float32") for t in (x, f, b)]
    (result,) = run_prim_func(scheduled(func), cpu_target(), arrays)
    data, filters, bias = (a.astype("float64") for a in arrays)
    windows = np.repeat(patches(data, g, 0.0), g.multiplier, axis=1)
    expected = np.maximum(np.einsum("ncpqrs,crs->ncpq", windows, filters[:, 0]) + bias, 0)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@SETTINGS
@given(geometries(), st.sampled_from(["max", "avg"]))
def test_pooling(g: Geometry, kind: str) -> None:
    x = te.placeholder((g.n, g.c, g.h, g.w), name="x")
    y = topi.nn.pool2d(x, (g.r, g.s), g.stride, g.dilation, g.padding, kind, layout="NCHW", count_include_pad=True)
    array = np.random.default_rng(2).standard_normal((g.n, g.c, g.h, g.w)).astype("float32")
    (result,) = run_prim_func(scheduled(te.create_prim_func([x, y])), cpu_target(), [array])
    lowest = float(np.finfo("float32").min)
    windows = patches(array.astype("float64"), g, lowest if kind == "max" else 0.0)
    expected = windows.max((4, 5)) if kind == "max" else windows.mean((4, 5))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("taps, matched", [((3, 3), True), ((1, 5), True), ((5, 1), True)])
def test_window_is_recognised(taps: tuple[int, int], matched: bool) -> None:
    x = te.placeholder((1, 4, 12, 12), name="x")
    y = topi.nn.pool2d(x, taps, (1, 1), (1, 1), (1, 1, 1, 1), "max")
    assert (match_window(te.create_prim_func([x, y])) is not None) is matched


def test_dense_convolution_is_no_window() -> None:
    x, f = te.placeholder((1, 4, 12, 12), name="x"), te.placeholder((8, 4, 3, 3), name="f")
    assert match_window(te.create_prim_func([x, f, topi.nn.conv2d_nchw(x, f, 1, 1, 1)])) is None


def test_reshape_is_left_to_relax() -> None:
    x = te.placeholder((1, 4, 3, 3), name="x")
    func = te.create_prim_func([x, topi.reshape(x, (1, 36))])
    assert relax.analysis.has_reshape_pattern(func)
    assert schedule_func(func, cpu_target(), rules_for(cpu_target())).same_as(func)
