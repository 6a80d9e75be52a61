"""Local response normalisation over channels as one operator; TVM's frontend says it in eight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax, te, tirx

from tvm_sparse.network.imported import operator, scalar, static_shape

#: From the quotient's denominator up to the square, and which argument leads on.
_CHAIN = (
    "relax.power",
    "relax.add",
    "relax.multiply",
    "relax.squeeze",
    "relax.nn.avg_pool3d",
    "relax.expand_dims",
    "relax.multiply",
)


@dataclass(frozen=True)
class _ResponseNorm:
    """x / (bias + alpha · mean of x² over `size` channels, zeros beyond the first and last) ** beta"""

    x: Any
    size: int
    alpha: float
    bias: float
    beta: float


@relax.expr_functor.mutator
class _Fuser(relax.PyExprMutator):
    def visit_call_(self, call: relax.Call) -> Any:
        call = self.visit_expr_post_order(call)
        norm = self._match(call) if operator(call) == "relax.divide" else None
        if norm is None:
            return call
        return self.builder_.call_te(lambda x: _expression(x, norm), norm.x, primfunc_name_hint="lrn")

    def _value(self, expr: Any) -> Any:
        while isinstance(expr, relax.Var) and (value := self.lookup_binding(expr)) is not None:
            expr = value
        return expr

    def _match(self, call: relax.Call) -> _ResponseNorm | None:
        x, expr = call.args
        chain = []
        for name in _CHAIN:
            value = self._value(expr)
            if operator(value) != name:
                return None
            chain.append(value)
            expr = value.args[0]
        power, shifted, scaled, _, pooled, _, square = chain
        constants = [scalar(value.args[1]) for value in (scaled, shifted, power)]
        shape, attrs = static_shape(x), pooled.attrs
        size = int(attrs.pool_size[0])
        over_channels = (
            [int(n) for n in attrs.pool_size] == [size, 1, 1]
            and [int(n) for n in attrs.strides] == [1, 1, 1]
            and [int(n) for n in attrs.padding] == [size // 2, 0, 0, size // 2, 0, 0]
            and bool(attrs.count_include_pad)
            and static_shape(pooled) == ((shape[0], 1, *shape[1:]) if shape else None)
        )
        same = all(self._value(argument).same_as(self._value(x)) for argument in square.args)
        if None in constants or shape is None or len(shape) != 4 or size % 2 == 0 or not over_channels or not same:
            return None
        alpha, bias, beta = (float(constant or 0.0) for constant in constants)
        return _ResponseNorm(x, size, alpha, bias, beta)


def _expression(x: te.Tensor, norm: _ResponseNorm) -> te.Tensor:
    """The normalised x (n, c, h, w)."""
    channels, before = x.shape[1], norm.size // 2
    tap = te.reduce_axis((tirx.const(0, "int64"), tirx.const(norm.size, "int64")), name="tap")

    def squares(i: Any, c: Any, h: Any, w: Any) -> Any:
        at = c - before
        square = x[i, at, h, w] * x[i, at, h, w]
        return tirx.if_then_else(tirx.all(at >= 0, at < channels), square, tirx.const(0, x.dtype))

    n, _, *pixel = x.shape
    squared = te.compute((n, channels + 2 * before, *pixel), squares, name="squares")
    total = te.compute(x.shape, lambda i, c, h, w: te.sum(squared[i, c + tap, h, w], axis=tap), name="total")
    scale, bias, beta = (tirx.const(value, x.dtype) for value in (norm.alpha / norm.size, norm.bias, norm.beta))
    return te.compute(x.shape, lambda *at: x(*at) / te.power(total(*at) * scale + bias, beta), name="lrn")


def fuse_response_norms(module: tvm.IRModule) -> tvm.IRModule:
    """Replace every local response normalisation over channels in "main" by one call."""
    fuser = _Fuser(module)
    fuser.builder_.update_func(module.get_global_var("main"), fuser.visit_expr(module["main"]))
    return relax.transform.DeadCodeElimination(["main"])(fuser.builder_.get())
