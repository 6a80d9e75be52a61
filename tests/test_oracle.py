"""The oracle against onnx.reference, and against what can be worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from tvm_sparse.errors import InputError
from tvm_sparse.oracle import activate, conv2d, relative_error


def onnx_conv(x: np.ndarray, weight: np.ndarray, *, bias: Any = None, **attributes: Any) -> np.ndarray:
    """One Conv node in float64, evaluated by onnx.reference."""
    inputs = {"x": x, "w": weight} | ({} if bias is None else {"b": bias})
    node = helper.make_node("Conv", list(inputs), ["y"], **attributes)
    infos = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, a.shape) for name, a in inputs.items()]
    graph = helper.make_graph([node], "conv", infos, [helper.make_tensor_value_info("y", TensorProto.DOUBLE, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    return ReferenceEvaluator(model).run(None, inputs)[0]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


CASES: dict[str, dict[str, Any]] = {
    "3x3": {"x": (1, 4, 8, 8), "w": (6, 4, 3, 3)},
    "padded": {"x": (1, 4, 8, 8), "w": (6, 4, 3, 3), "padding": (1, 1, 1, 1)},
    "asymmetric padding": {"x": (2, 3, 7, 9), "w": (5, 3, 3, 3), "padding": (0, 1, 2, 3)},
    "stride": {"x": (1, 3, 11, 10), "w": (4, 3, 3, 3), "stride": (2, 3), "padding": (1, 1, 1, 1)},
    "dilation": {"x": (1, 3, 12, 13), "w": (4, 3, 3, 2), "dilation": (2, 3)},
    "groups": {"x": (2, 6, 7, 7), "w": (8, 3, 3, 3), "groups": 2, "padding": (1, 1, 1, 1)},
    "depthwise": {"x": (1, 6, 7, 7), "w": (6, 1, 3, 3), "groups": 6, "padding": (1, 1, 1, 1)},
    "depthwise, two channels each": {"x": (1, 5, 6, 6), "w": (10, 1, 3, 3), "groups": 5},
    "pointwise": {"x": (3, 5, 4, 4), "w": (7, 5, 1, 1)},
    "pointwise, stride 2": {"x": (1, 5, 7, 7), "w": (7, 5, 1, 1), "stride": (2, 2)},
    "1-D": {"x": (2, 4, 1, 20), "w": (3, 4, 1, 5), "stride": (1, 2), "padding": (0, 2, 0, 1), "dilation": (1, 2)},
    "even kernel": {"x": (1, 2, 9, 9), "w": (3, 2, 4, 2), "padding": (2, 0, 1, 1), "stride": (1, 2)},
    "one pixel": {"x": (1, 2, 3, 3), "w": (3, 2, 3, 3)},
    "all at once": {
        "x": (2, 8, 15, 12),
        "w": (12, 2, 3, 5),
        "stride": (2, 1),
        "padding": (3, 1, 0, 2),
        "dilation": (2, 2),
        "groups": 4,
    },
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_conv2d_is_onnx_conv(case: dict[str, Any]) -> None:
    options = {key: value for key, value in case.items() if key not in "xw"}
    x, weight, bias = normal(*case["x"]), normal(*case["w"], seed=1), normal(case["w"][0], seed=2)
    expected = onnx_conv(
        x,
        weight,
        bias=bias,
        strides=options.get("stride", (1, 1)),
        pads=options.get("padding", (0, 0, 0, 0)),
        dilations=options.get("dilation", (1, 1)),
        group=options.get("groups", 1),
    )
    actual = conv2d(x, weight, bias=bias, **options)
    assert actual.dtype == np.float64 and actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


@settings(deadline=None)
@given(st.data())
def test_any_convolution_is_a_sum_over_its_window(data: st.DataObject) -> None:
    """One output element, chosen at random, from the definition."""

    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    groups, r, s = draw(1, 3), draw(1, 3), draw(1, 3)
    stride, dilation = (draw(1, 3), draw(1, 3)), (draw(1, 2), draw(1, 2))
    padding = (draw(0, 2), draw(0, 2), draw(0, 2), draw(0, 2))
    n, group_channels, group_rows, h, w = draw(1, 2), draw(1, 3), draw(1, 3), draw(5, 9), draw(5, 9)
    x = normal(n, groups * group_channels, h, w)
    weight = normal(groups * group_rows, group_channels, r, s, seed=1)
    y = conv2d(x, weight, stride=stride, padding=padding, dilation=dilation, groups=groups)
    at, k, p, q = (draw(0, extent - 1) for extent in y.shape)
    expected = 0.0
    for c in range(group_channels):
        for i in range(r):
            for j in range(s):
                row = p * stride[0] + i * dilation[0] - padding[0]
                column = q * stride[1] + j * dilation[1] - padding[1]
                if 0 <= row < h and 0 <= column < w:
                    channel = k // group_rows * group_channels + c
                    expected += weight[k, c, i, j] * x[at, channel, row, column]
    assert y[at, k, p, q] == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_float32_inputs_are_summed_in_float64() -> None:
    x = np.array([1e8, 1, -1e8], np.float32).reshape(1, 3, 1, 1)
    assert conv2d(x, np.ones((1, 3, 1, 1), np.float32)).item() == 1.0


def test_the_epilogue_is_bias_then_residual_then_activation() -> None:
    x, weight, bias, residual = normal(2, 3, 5, 5), normal(4, 3, 3, 3), normal(4, seed=2), normal(2, 4, 3, 3, seed=3)
    plain = conv2d(x, weight)
    actual = conv2d(x, weight, bias=bias, residual=residual, activation="relu")
    np.testing.assert_allclose(actual, np.maximum(plain + bias[:, None, None] + residual, 0), rtol=1e-14)
    assert (actual == 0).any() and (actual > 0).any()


def test_arguments_are_left_alone() -> None:
    x, weight = normal(1, 2, 4, 4), normal(2, 2, 1, 1)
    kept = x.copy()
    conv2d(x, weight, bias=np.ones(2), activation="relu")
    activate(x, "relu")
    np.testing.assert_array_equal(x, kept)


@pytest.mark.parametrize(("activation", "op"), [("relu", "Relu"), ("hard_swish", "HardSwish"), ("silu", "Sigmoid")])
def test_activations_are_those_of_onnx(activation: str, op: str) -> None:
    y = np.linspace(-9, 9, 181)
    info = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, [y.size]) for name in "ab"]
    graph = helper.make_graph([helper.make_node(op, ["a"], ["b"])], "activation", info[:1], info[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    expected = ReferenceEvaluator(model).run(None, {"a": y})[0]
    if activation == "silu":
        expected = y * expected
    np.testing.assert_allclose(activate(y, activation), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (None, [-1000, -1, 0, 2, 7, math.nan]),
        ("relu", [0, 0, 0, 2, 7, math.nan]),
        ("relu6", [0, 0, 0, 2, 6, math.nan]),
        (("clip", -0.5, 3.0), [-0.5, -0.5, 0, 2, 3, math.nan]),
        (("clip", -math.inf, 1.0), [-1000, -1, 0, 1, 1, math.nan]),
        ("silu", [0, -1 / (1 + math.e), 0, 2 / (1 + math.exp(-2)), 7 / (1 + math.exp(-7)), math.nan]),
        ("hard_swish", [0, -1 / 3, 0, 5 / 3, 7, math.nan]),
    ],
)
def test_activations_by_hand(activation: Any, expected: list[float]) -> None:
    with np.errstate(all="raise", under="ignore"):
        actual = activate(np.array([-1000, -1, 0, 2, 7, math.nan]), activation)
    np.testing.assert_allclose(actual, expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize("activation", ["gelu", "", ("clip", 0.0), ("relu",), 6])
def test_unknown_activations_are_refused(activation: Any) -> None:
    with pytest.raises(InputError, match="unknown activation"):
        activate(np.zeros(3), activation)


@pytest.mark.parametrize(
    ("x", "weight", "options"),
    [
        ((1, 4, 8), (2, 4, 3, 3), {}),
        ((1, 4, 8, 8), (2, 4, 3), {}),
        ((1, 4, 8, 8), (2, 3, 3, 3), {}),
        ((1, 4, 8, 8), (3, 2, 3, 3), {"groups": 2}),
        ((1, 4, 8, 8), (2, 4, 3, 3), {"groups": 0}),
        ((1, 4, 8, 8), (2, 4, 9, 3), {}),
        ((1, 4, 8, 8), (2, 4, 3, 3), {"dilation": (1, 5)}),
        ((1, 4, 8, 8), (2, 4, 3, 3), {"stride": (0, 1)}),
        ((1, 4, 8, 8), (2, 4, 3, 3), {"padding": (0, -1, 0, 0)}),
        ((1, 4, 8, 8), (2, 4, 3, 3), {"bias": np.zeros(3)}),
        ((1, 4, 8, 8), (2, 4, 3, 3), {"residual": np.zeros((1, 2, 1, 1))}),
    ],
)
def test_shapes_that_do_not_fit_are_refused(x: Any, weight: Any, options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        conv2d(np.zeros(x), np.zeros(weight), **options)


@pytest.mark.parametrize(
    ("actual", "reference", "expected"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0.0),
        ([3.0, 4.5], [3.0, 4.0], 0.1),
        ([[1.0, 1.0]], [1.0, 1.0], math.inf),
        ([1.0, math.nan], [1.0, 2.0], math.inf),
        ([1.0, 2.0], [1.0, math.inf], math.inf),
        ([math.inf], [math.inf], math.inf),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([3.0, 4.0], [0.0, 0.0], 5.0),
        ([1e-200, 2e-200], [1e-200, 1e-200], math.sqrt(0.5)),
        ([2e200, 0.0], [1e200, 0.0], 1.0),
        ([], [], 0.0),
    ],
)
def test_relative_error(actual: list[float], reference: list[float], expected: float) -> None:
    assert relative_error(np.array(actual), np.array(reference)) == pytest.approx(expected, rel=1e-12)
