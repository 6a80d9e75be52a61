"""One-dimensional convolutions as two-dimensional ones with h = 1, so that all later steps see conv2d only."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from tvm_sparse.network.imported import bindings_of, is_constant, operator, static_shape

_UNARY = {f"relax.{name}" for name in ("nn.relu", "nn.silu", "nn.leakyrelu", "nn.gelu", "sigmoid", "tanh", "clip")}
_BINARY = {f"relax.{name}" for name in ("add", "subtract", "multiply", "divide", "maximum", "minimum")}
_HEIGHT = 2


@relax.expr_functor.mutator
class _Lifter(relax.PyExprMutator):
    """Keeps tensors (n, c, 1, w) as long as it can: a squeeze is pushed below what follows a convolution."""

    def visit_call_(self, call: relax.Call) -> Any:
        call = self.visit_expr_post_order(call)
        name = operator(call)
        if name == "relax.nn.conv1d" and call.attrs.data_layout == "NCW" and is_constant(call.args[1]):
            return self._squeeze(self._conv2d(call))
        if name in _UNARY and (lifted := self._lifted(call.args[0])) is not None:
            return self._squeeze(relax.Call(call.op, [lifted, *call.args[1:]], call.attrs))
        if name in _BINARY and any(self._lifted(arg) is not None for arg in call.args):
            operands = [self._operand(arg) for arg in call.args]
            if all(operand is not None for operand in operands):
                return self._squeeze(relax.Call(call.op, operands, call.attrs))
        return call

    def visit_tuple_getitem_(self, item: relax.TupleGetItem) -> Any:
        item = self.visit_expr_post_order(item)
        norm = self._value(item.tuple_value)
        if item.index == 0 and operator(norm) == "relax.nn.batch_norm" and int(norm.attrs.axis) == 1:
            lifted = self._lifted(norm.args[0])
            if lifted is not None:
                both = self.builder_.emit(relax.Call(norm.op, [lifted, *norm.args[1:]], norm.attrs))
                return self._squeeze(relax.TupleGetItem(both, 0))
        return item

    def _value(self, expr: Any) -> Any:
        value = self.lookup_binding(expr) if isinstance(expr, relax.Var) else expr
        while isinstance(value, relax.Var):
            expr, value = value, self.lookup_binding(value)
        return value

    def _lifted(self, expr: Any) -> Any:
        """The (n, c, 1, w) tensor that `expr` is the squeezed form of, or None."""
        value = self._value(expr)
        if operator(value) != "relax.squeeze" or [int(axis) for axis in value.attrs.axis or ()] != [_HEIGHT]:
            return None
        source = static_shape(value.args[0])
        return value.args[0] if source is not None and len(source) == 4 else None

    def _operand(self, expr: Any) -> Any:
        """What stands for `expr` beside a lifted tensor, or None where that is not plain."""
        lifted = self._lifted(expr)
        if lifted is not None:
            return lifted
        if not is_constant(expr):
            return None
        array = expr.value.numpy()
        return relax.const(array[..., None, :], str(array.dtype)) if array.ndim >= 2 else expr

    def _conv2d(self, call: relax.Call) -> relax.Call:
        attrs = call.attrs
        weight = call.args[1].value.numpy()
        left, right = (int(pad) for pad in attrs.padding)
        data = self._lifted(call.args[0])
        if data is None:
            data = self.builder_.emit(relax.op.expand_dims(call.args[0], _HEIGHT))
        return relax.op.nn.conv2d(
            data,
            relax.const(weight[:, :, None, :], str(weight.dtype)),
            strides=[1, int(attrs.strides[0])],
            padding=[0, left, 0, right],
            dilation=[1, int(attrs.dilation[0])],
            groups=int(attrs.groups),
            out_dtype=attrs.out_dtype,
        )

    def _squeeze(self, expr: Any) -> relax.Call:
        return relax.op.squeeze(self.builder_.emit(expr), [_HEIGHT])


def lift_convolutions(module: tvm.IRModule) -> tvm.IRModule:
    """Rewrite every conv1d with a constant filter in "main" as a conv2d over (n, c, 1, w)."""
    if not any(operator(value) == "relax.nn.conv1d" for _, value in bindings_of(module["main"])):
        return module
    lifter = _Lifter(module)
    lifter.builder_.update_func(module.get_global_var("main"), lifter.visit_expr(module["main"]))
    return lifter.builder_.get()
