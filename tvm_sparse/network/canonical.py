"""One form for each activation, however the framework spelled it, so that the matcher knows few patterns.

ReLU is `nn.relu(x)`, ReLU6 and clip are `clip(x, low, high)`, SiLU is `nn.silu(x)`, hard-swish is
`multiply(x, divide(clip(add(x, 3), 0, 6), 6))`.
"""

from __future__ import annotations

from math import inf, isclose
from typing import Any

import tvm
from tvm import relax

from tvm_sparse.network.imported import is_constant, operator, scalar, static_shape

_CLIPS = ("relax.clip", "relax.maximum", "relax.minimum", "relax.nn.relu")


@relax.expr_functor.mutator
class _Canonical(relax.PyExprMutator):
    def visit_call_(self, call: relax.Call) -> Any:
        call = self.visit_expr_post_order(call)
        name = operator(call)
        if name in _CLIPS:
            return self._clip(call)
        result = None
        if name == "relax.multiply":
            result = self._silu(call)
        if result is None and name in ("relax.multiply", "relax.divide"):
            result = self._hard_swish(call)
        return call if result is None else result

    def _value(self, expr: Any) -> Any:
        while isinstance(expr, relax.Var) and (value := self.lookup_binding(expr)) is not None:
            expr = value
        return expr

    def _same(self, left: Any, right: Any) -> bool:
        left, right = self._value(left), self._value(right)
        return bool(left.same_as(right))

    def _clip(self, call: relax.Call) -> Any:
        """Two clips in a row as one, a clip from 0 upwards as ReLU."""
        found = _clip_bounds(call)
        if found is None or not str(call.ty.dtype).startswith("float"):
            return call
        source, low, high = found
        inner = self._value(source)
        if operator(inner) in _CLIPS and (under := _clip_bounds(inner)) is not None:
            source = under[0]
            low, high = (min(max(bound, low), high) for bound in under[1:])
        if static_shape(source) != static_shape(call):
            return call
        if (low, high) == (-inf, inf):
            return source
        if (low, high) == (0, inf):
            return relax.op.nn.relu(source)
        # A one-sided clip stays as it is: rewritten, it would be two-sided with an infinite bound.
        return call if -inf in (low, high) or inf in (low, high) else relax.op.clip(source, low, high)

    def _silu(self, call: relax.Call) -> Any:
        for source, gate in (call.args, reversed(call.args)):
            value = self._value(gate)
            if operator(value) == "relax.sigmoid" and self._same(value.args[0], source):
                return relax.op.nn.silu(source)
        return None

    def _hard_swish(self, call: relax.Call) -> Any:
        found = self._gated(call)
        if found is None or not isclose(found[1], 1 / 6, rel_tol=1e-6) or static_shape(found[0]) != static_shape(call):
            return None
        source, dtype = found[0], str(call.ty.dtype)
        shifted = self.builder_.emit(relax.op.add(source, relax.const(3, dtype)))
        clipped = self.builder_.emit(relax.op.clip(shifted, 0, 6))
        gate = self.builder_.emit(relax.op.divide(clipped, relax.const(6, dtype)))
        return relax.op.multiply(source, gate)

    def _gated(self, expr: Any) -> tuple[Any, float] | None:
        """(x, f) where `expr` is f * x * relu6(x + 3)."""
        value = self._value(expr)
        if (scaled := _scaled(value)) is not None:
            found = self._gated(scaled[0])
            return None if found is None else (found[0], found[1] * scaled[1])
        if operator(value) != "relax.multiply":
            return None
        for source, gate in (value.args, reversed(value.args)):
            found = self._gate(gate)
            if found is not None and self._same(found[0], source):
                return source, found[1]
        return None

    def _gate(self, expr: Any) -> tuple[Any, float] | None:
        """(x, f) where `expr` is f * relu6(x + 3); hard-sigmoid is that with f = 1/6."""
        value = self._value(expr)
        if (scaled := _scaled(value)) is not None:
            found = self._gate(scaled[0])
            return None if found is None else (found[0], found[1] * scaled[1])
        bounds = _clip_bounds(value)
        shifted: Any = self._value(bounds[0]) if bounds is not None else None
        if bounds is None or operator(shifted) != "relax.add":
            return None
        source, shift = shifted.args if is_constant(shifted.args[1]) else reversed(shifted.args)
        top, shift = bounds[2], scalar(shift)
        if bounds[1] != 0 or shift is None or not isclose(2 * shift, top, rel_tol=1e-6):
            return None
        inner = _scaled(self._value(source))
        source, slope = inner if inner is not None else (source, 1.0)
        return (source, top / 6) if isclose(6 * slope, top, rel_tol=1e-6) else None


def _scaled(value: Any) -> tuple[Any, float] | None:
    """(x, f) where `value` is the call x * f or x / f with a scalar f."""
    name = operator(value)
    if name not in ("relax.multiply", "relax.divide"):
        return None
    left, right = value.args
    if name == "relax.multiply" and scalar(right) is None:
        left, right = right, left
    factor = scalar(right)
    if factor is None or (name == "relax.divide" and factor == 0):
        return None
    return left, (factor if name == "relax.multiply" else 1 / factor)


def _clip_bounds(value: Any) -> tuple[Any, float, float] | None:
    """(x, low, high) of a clip, a ReLU or a maximum or minimum with a scalar."""
    name = operator(value)
    if name == "relax.nn.relu":
        return value.args[0], 0.0, inf
    if name == "relax.clip":
        low, high = scalar(value.args[1]), scalar(value.args[2])
        return None if low is None or high is None else (value.args[0], low, high)
    if name not in ("relax.maximum", "relax.minimum"):
        return None
    source, bound = value.args if scalar(value.args[1]) is not None else reversed(value.args)
    limit = scalar(bound)
    if limit is None:
        return None
    return (source, limit, inf) if name == "relax.maximum" else (source, -inf, limit)


def canonical_activations(module: tvm.IRModule) -> tvm.IRModule:
    """Rewrite the activations of "main" in the forms above."""
    mutator = _Canonical(module)
    mutator.builder_.update_func(module.get_global_var("main"), mutator.visit_expr(module["main"]))
    return mutator.builder_.get()
