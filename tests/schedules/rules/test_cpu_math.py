"""exp, sigmoid and tanh as polynomials: accuracy over the whole range, and the special values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tvm import te, tirx

from tests.schedules.rules.programs import cpu_target, run_prim_func
from tvm_sparse.schedules.rules.cpu_math import vectorizable_math

FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "exp": (tirx.exp, np.exp),
    "sigmoid": (tirx.sigmoid, lambda x: 1 / (1 + np.exp(-x))),
    "tanh": (tirx.tanh, np.tanh),
}


def evaluate(name: str, values: np.ndarray) -> np.ndarray:
    x = te.placeholder(values.shape, name="x")
    y = te.compute(values.shape, lambda i: FUNCTIONS[name][0](x[i]), name="y")
    func = vectorizable_math(te.create_prim_func([x, y]))
    assert f"T.{name}(" not in func.script()
    return run_prim_func(func, cpu_target(), [values])[0]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_accuracy(name: str) -> None:
    x = np.concatenate([np.linspace(-86, 88.7, 100_001), np.linspace(-1, 1, 20_001)]).astype("float32")
    with np.errstate(over="ignore"):
        expected = FUNCTIONS[name][1](x.astype("float64"))
    np.testing.assert_allclose(evaluate(name, x), expected, rtol=4e-7, atol=1e-37)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("exp", [np.nan, np.inf, 0.0, np.inf, 0.0, 1.0]),
        ("sigmoid", [np.nan, 1.0, 0.0, 1.0, 0.0, 0.5]),
        ("tanh", [np.nan, 1.0, -1.0, 1.0, -1.0, 0.0]),
    ],
)
def test_special_values(name: str, expected: list[float]) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 1000.0, -1000.0, 0.0] * 16, "float32")
    np.testing.assert_allclose(evaluate(name, x), expected * 16, atol=1e-37)


def test_other_dtypes_are_left() -> None:
    x = te.placeholder((4,), "float64", name="x")
    func = te.create_prim_func([x, te.compute((4,), lambda i: tirx.exp(x[i]), name="y")])
    assert "T.exp(" in vectorizable_math(func).script()
