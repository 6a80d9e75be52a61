"""Local response normalisation over channels as one operator; TVM's frontend says it in eight.

A max-pool behind it joins in: the normalised tensor, which is read once and is larger than what it is made of and what
is made of it, needs no memory then. Where windows overlap, some of it is computed more than once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


@dataclass(frozen=True)
class _Pool:
    """Max-pooling (rows, columns), `padding` in front; the output's rows and columns."""

    window: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    size: tuple[int, int]


@relax.expr_functor.mutator
class _Fuser(relax.PyExprMutator):
    def __init__(self, module: tvm.IRModule, pools: bool) -> None:
        super().__init__(module)
        self.pools = pools
        self.found: list[tuple[Any, _ResponseNorm]] = []

    def visit_call_(self, call: relax.Call) -> Any:
        call = self.visit_expr_post_order(call)
        if operator(call) == "relax.divide" and (norm := self._match(call)) is not None:
            result = self.builder_.call_te(lambda x: _expression(x, norm), norm.x, primfunc_name_hint="lrn")
            self.found.append((result, norm))
            return result
        if operator(call) == "relax.nn.max_pool2d" and self.pools and (pool := _pool(call)) is not None:
            source = self._value(call.args[0])
            norm = next((norm for result, norm in self.found if result.same_as(source)), None)
            if norm is not None:
                return self.builder_.call_te(
                    lambda x: _pooled(x, norm, pool), norm.x, primfunc_name_hint="lrn_max_pool"
                )
        return call

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


def _pool(call: relax.Call) -> _Pool | None:
    attrs, shape, size = call.attrs, static_shape(call.args[0]), static_shape(call)
    plain = attrs.layout == "NCHW" and attrs.out_layout == "NCHW" and all(int(n) == 1 for n in attrs.dilation)
    if not plain or shape is None or size is None:
        return None
    window, stride, padding = (
        (int(values[0]), int(values[1])) for values in (attrs.pool_size, attrs.strides, attrs.padding)
    )
    # A window that holds nothing but padding has no largest element.
    last = [(out - 1) * step - before for out, step, before in zip(size[2:], stride, padding, strict=True)]
    if any(at >= length for at, length in zip(last, shape[2:], strict=True)) or any(
        before >= length for before, length in zip(padding, window, strict=True)
    ):
        return None
    return _Pool(window, stride, padding, (size[2], size[3]))


def _pooled(x: te.Tensor, norm: _ResponseNorm, pool: _Pool) -> te.Tensor:
    """The largest normalised x of every window. Beyond the edge it is the nearest one, which is in the window too."""

    def nearest(axis: int, at: Any) -> Any:
        length, before = int(x.shape[2 + axis]), pool.padding[axis]
        at = te.max(at - before, tirx.const(0, "int64")) if before else at
        beyond = extents[axis] - before > length
        return te.min(at, tirx.const(length - 1, "int64")) if beyond else at

    every = zip(pool.size, pool.stride, pool.window, strict=True)
    extents = [(out - 1) * stride + window for out, stride, window in every]
    y = _expression(x, norm, extents, nearest)
    r, s = (
        te.reduce_axis((tirx.const(0, "int64"), tirx.const(length, "int64")), name=name)
        for length, name in zip(pool.window, ("r", "s"), strict=True)
    )
    shape = (*x.shape[:2], *(tirx.const(length, "int64") for length in pool.size))
    rows, cols = pool.stride
    return te.compute(shape, lambda i, k, p, q: te.max(y[i, k, p * rows + r, q * cols + s], axis=[r, s]), name="out")


def _expression(
    x: te.Tensor,
    norm: _ResponseNorm,
    extents: Sequence[int] | None = None,
    place: Callable[[int, Any], Any] = lambda axis, at: at,
) -> te.Tensor:
    """The normalised x (n, c, h, w), or `extents` rows and columns of it: place(0, row) and place(1, column) of x."""
    channels, before = x.shape[1], norm.size // 2
    tap = te.reduce_axis((tirx.const(0, "int64"), tirx.const(norm.size, "int64")), name="tap")

    def element(i: Any, c: Any, h: Any, w: Any) -> Any:
        return x[i, c, place(0, h), place(1, w)]

    def squares(i: Any, c: Any, h: Any, w: Any) -> Any:
        at = c - before
        square = element(i, at, h, w) * element(i, at, h, w)
        return tirx.if_then_else(tirx.all(at >= 0, at < channels), square, tirx.const(0, x.dtype))

    pixel = x.shape[2:] if extents is None else [tirx.const(length, "int64") for length in extents]
    shape = (*x.shape[:2], *pixel)
    squared = te.compute((x.shape[0], channels + 2 * before, *pixel), squares, name="squares")
    total = te.compute(shape, lambda i, c, h, w: te.sum(squared[i, c + tap, h, w], axis=tap), name="total")
    scale, bias, beta = (tirx.const(value, x.dtype) for value in (norm.alpha / norm.size, norm.bias, norm.beta))
    return te.compute(shape, lambda *at: element(*at) / te.power(total(*at) * scale + bias, beta), name="lrn")


def fuse_response_norms(module: tvm.IRModule, pools: bool = True) -> tvm.IRModule:
    """Replace every local response normalisation over channels in "main" by one call, with its max-pool if `pools`."""
    fuser = _Fuser(module, pools)
    fuser.builder_.update_func(module.get_global_var("main"), fuser.visit_expr(module["main"]))
    return relax.transform.DeadCodeElimination(["main"])(fuser.builder_.get())
