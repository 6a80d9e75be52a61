"""float32 exp, sigmoid and tanh as polynomials, which LLVM vectorises; the C library's functions it calls lane by lane.

Source: the Cephes single-precision library (expf, tanhf). Error at most 2 ulp for exp; exp(x) is 0 below x = -87.
"""

from __future__ import annotations

from collections.abc import Callable

import tvm_ffi
from tvm import ir, tirx

LOG2_E = 1.44269504088896341
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
EXP_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
TANH_POLYNOMIAL = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
EXP_LOWEST, EXP_HIGHEST = -87.3, 89.0


def vectorizable_math(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Replace float32 exp, sigmoid and tanh in a function, scheduled or not."""

    def on_call(call: ir.Call) -> tirx.Expr:
        replace = _REPLACEMENTS.get(getattr(call.op, "name", ""))
        if replace is None or str(call.args[0].ty.dtype) != "float32":
            return call
        return _let(call.args[0], replace)

    return tvm_ffi.structural_map(func, (ir.Call, on_call), order="post")


def _f32(value: float) -> tirx.Expr:
    return tirx.const(value, "float32")


def _let(value: tirx.Expr, body: Callable[[tirx.Var], tirx.Expr]) -> tirx.Expr:
    """Bind `value` once, so that the text does not grow with every use."""
    var = tirx.Var("t", value.ty.dtype)
    return tirx.Let(var, value, body(var))


def _polynomial(coefficients: tuple[float, ...], x: tirx.Var) -> tirx.Expr:
    total = _f32(coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * x + _f32(coefficient)
    return total


def _exp(x: tirx.Expr) -> tirx.Expr:
    """exp(x) = 2^k · exp(r), |r| ≤ ln 2 / 2; constants come first in min and max so that a NaN stays one."""

    def scaled(y: tirx.Var, k: tirx.Var) -> tirx.Expr:
        # 2^k as 2^(k-1) · 2: k reaches 128, whose exponent field would be that of infinity.
        power = tirx.reinterpret("float32", (k.astype("int32") + tirx.const(126, "int32")) << tirx.const(23, "int32"))
        return y * power * _f32(2.0)

    def with_k(clamped: tirx.Var, k: tirx.Var) -> tirx.Expr:
        rest = clamped - k * _f32(LN2_HIGH) - k * _f32(LN2_LOW)
        return _let(rest, lambda r: scaled(_polynomial(EXP_POLYNOMIAL, r) * r * r + r + _f32(1.0), k))

    def with_clamped(clamped: tirx.Var) -> tirx.Expr:
        return _let(tirx.floor(clamped * _f32(LOG2_E) + _f32(0.5)), lambda k: with_k(clamped, k))

    return _let(tirx.max(_f32(EXP_LOWEST), tirx.min(_f32(EXP_HIGHEST), x)), with_clamped)


def _sigmoid(x: tirx.Expr) -> tirx.Expr:
    return _f32(1.0) / (_f32(1.0) + _exp(_f32(0.0) - x))


def _tanh(x: tirx.Expr) -> tirx.Expr:
    small = _let(x * x, lambda z: _polynomial(TANH_POLYNOMIAL, z) * z * x + x)
    large = _f32(1.0) - _f32(2.0) / (_exp(x * _f32(2.0)) + _f32(1.0))
    return tirx.Select(tirx.abs(x) < _f32(0.625), small, large)


_REPLACEMENTS: dict[str, Callable[[tirx.Expr], tirx.Expr]] = {
    "tirx.exp": _exp,
    "tirx.sigmoid": _sigmoid,
    "tirx.tanh": _tanh,
}
