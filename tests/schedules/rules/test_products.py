"""Matrix products and reductions of any size against float64, outputs poisoned."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tvm import te, tirx, topi

from tests.schedules.rules.programs import cpu_target, is_scheduled, run_prim_func
from tvm_sparse.schedules.rules import rules_for, schedule_func
from tvm_sparse.schedules.rules.cpu_linear import match_product

SETTINGS = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SIZES = st.one_of(st.integers(1, 40), st.sampled_from([48, 64, 97, 100, 128, 1000]))


def check(func: tirx.PrimFunc, arrays: list[np.ndarray], expected: np.ndarray, scale: float = 1.0) -> None:
    target = cpu_target()
    result = schedule_func(func.without_attr("global_symbol"), target, rules_for(target))
    assert is_scheduled(result)
    (value,) = run_prim_func(result, target, arrays)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=2e-6 * scale)


@SETTINGS
@given(st.integers(1, 17), SIZES, SIZES, st.booleans(), st.booleans())
def test_linear(rows: int, inputs: int, outputs: int, transposed: bool, bias: bool) -> None:
    rng = np.random.default_rng(3)
    x, b = te.placeholder((rows, inputs), name="x"), te.placeholder((outputs,), name="b")
    w = te.placeholder((outputs, inputs) if transposed else (inputs, outputs), name="w")
    y = topi.nn.matmul(x, w, transpose_b=transposed)
    func = te.create_prim_func([x, w, b, topi.nn.relu(topi.add(y, b))] if bias else [x, w, y])
    arrays = [rng.standard_normal([int(e) for e in t.shape]).astype("float32") for t in (x, w, b)]
    data, weight, offset = (a.astype("float64") for a in arrays)
    expected = data @ (weight.T if transposed else weight)
    check(
        func, arrays if bias else arrays[:2], np.maximum(expected + offset, 0) if bias else expected,
        scale=max(inputs, 4) ** 0.5,
    )  # fmt: skip


@SETTINGS
@given(st.lists(st.integers(1, 33), min_size=1, max_size=4), st.data())
def test_reduction(shape: list[int], data: st.DataObject) -> None:
    axes = sorted(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1)))
    kind = data.draw(st.sampled_from(["sum", "max", "min"]))
    x = te.placeholder(shape, name="x")
    y = getattr(topi, kind)(x, axes, keepdims=data.draw(st.booleans()))
    array = np.random.default_rng(4).standard_normal(shape).astype("float32")
    expected = getattr(np, kind)(array.astype("float64"), axis=tuple(axes)).reshape([int(e) for e in y.shape])
    check(te.create_prim_func([x, y]), [array], expected, scale=0.2 * float(np.abs(array).sum()))


@pytest.mark.parametrize("dtype", ["int32", "int64", "float64", "int8", "bool"])
def test_other_dtypes(dtype: str) -> None:
    shape = (3, 65, 67)
    x, y = te.placeholder(shape, dtype, name="x"), te.placeholder(shape, dtype, name="y")
    out = topi.logical_or(x, y) if dtype == "bool" else topi.add(x, y)
    arrays = [np.random.default_rng(n).integers(0, 2 if dtype == "bool" else 50, shape).astype(dtype) for n in (5, 6)]
    expected = arrays[0] | arrays[1] if dtype == "bool" else arrays[0] + arrays[1]
    check(te.create_prim_func([x, y, out]), arrays, expected)


def test_several_outputs() -> None:
    x = te.placeholder((4, 33), name="x")
    total = topi.sum(x, 1)
    func = te.create_prim_func([x, topi.exp(x), total, topi.multiply(x, 2.0)])
    array = np.random.default_rng(7).standard_normal((4, 33)).astype("float32")
    target = cpu_target()
    result = schedule_func(func.without_attr("global_symbol"), target, rules_for(target))
    assert is_scheduled(result)
    values = run_prim_func(result, target, [array])
    for value, expected in zip(values, (np.exp(array), array.sum(1), array * 2), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)


def test_integer_product_is_not_taken() -> None:
    x, w = te.placeholder((4, 8), "int32", name="x"), te.placeholder((8, 4), "int32", name="w")
    func = te.create_prim_func([x, w, topi.nn.matmul(x, w)])
    assert match_product(func.body.block.body.body.body.body.block) is None
