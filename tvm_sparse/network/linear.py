"""Pruned linear layers as convolutions of one pixel, so that all later steps see convolutions only; and back again.

A linear layer is a product x (n, c) · w (c, k) with a constant w; pruned is one with few enough nonzeros.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvm_sparse.network.imported import Array, bindings_of, is_constant, operator, static_shape

#: With more nonzeros a linear layer is left as it is.
MOST_NONZEROS = 0.5
_UNARY = {f"relax.{name}" for name in ("nn.relu", "nn.silu", "clip")}
_PIXEL = (1, 1)

Shape = tuple[int, ...]


def filter_of(weight: Array) -> Array:
    """The weight (c, k) of a linear layer as a filter (k, c, 1, 1)."""
    return np.ascontiguousarray(weight.T)[:, :, None, None]


def is_pruned(weight: Array) -> bool:
    """Whether this is the weight of a pruned linear layer, (c, k) float32."""
    nonzeros = int(np.count_nonzero(weight))
    return weight.ndim == 2 and weight.dtype == np.float32 and nonzeros <= MOST_NONZEROS * weight.size


class _Rewriter(relax.PyExprMutator):
    """Rewrites a layer into another form, and what follows it too: a reshape to the form it had comes last.

    So what is fused behind the layer stands right behind it in the new form as well.
    """

    @abstractmethod
    def rewritten(self, call: relax.Call) -> Any:
        """The layer in its new form; None if `call` is no layer."""

    @abstractmethod
    def new_shape(self, shape: Shape) -> Shape | None:
        """The new form of a tensor or constant of this shape."""

    @abstractmethod
    def old_shape(self, shape: Shape) -> Shape:
        """The form that a tensor had."""

    def visit_call_(self, call: relax.Call) -> Any:
        call = self.visit_expr_post_order(call)
        result = self.rewritten(call)
        if result is None and operator(call) in _UNARY and (source := self.renewed(call.args[0])) is not None:
            result = relax.Call(call.op, [source, *call.args[1:]], call.attrs)
        if result is None and operator(call) == "relax.add":
            result = self._sum(call)
        if result is None:
            return self._unchanged(call)
        result = self.builder_.emit(result)
        return relax.op.reshape(result, self.old_shape(static_shape(result) or ()))

    def _unchanged(self, call: relax.Call) -> Any:
        """The call, or what a reshape to the new form is of."""
        source = self.renewed(call.args[0]) if operator(call) == "relax.reshape" else None
        return call if source is None or static_shape(source) != static_shape(call) else source

    def renewed(self, expr: Any) -> Any:
        """The tensor in its new form that `expr` is a reshape of, or None."""
        value = self._value(expr)
        shape = static_shape(value)
        if operator(value) != "relax.reshape" or shape is None:
            return None
        return value.args[0] if static_shape(value.args[0]) == self.new_shape(shape) else None

    def in_new_shape(self, expr: Any) -> Any:
        """A tensor in its new form."""
        renewed = self.renewed(expr)
        if renewed is not None:
            return renewed
        value, shape = self._value(expr), self.new_shape(static_shape(expr) or ())
        # of two reshapes in a row the first would be a copy
        return self.builder_.emit(
            relax.op.reshape(value.args[0] if operator(value) == "relax.reshape" else expr, shape)
        )

    def _value(self, expr: Any) -> Any:
        value = expr
        while isinstance(value, relax.Var) and (found := self.lookup_binding(value)) is not None:
            value = found
        return value

    def _sum(self, call: relax.Call) -> Any:
        operands = [self._constant(arg) if is_constant(arg) else self.renewed(arg) for arg in call.args]
        if any(operand is None for operand in operands) or all(is_constant(operand) for operand in operands):
            return None
        return relax.op.add(*operands)

    def _constant(self, expr: Any) -> Any:
        array = expr.value.numpy()
        shape = self.new_shape(array.shape) if array.ndim else ()
        return None if shape is None else relax.const(array.reshape(shape), str(array.dtype))


@relax.expr_functor.mutator
class _Lifter(_Rewriter):
    def rewritten(self, call: relax.Call) -> Any:
        if not _is_pruned_linear(call):
            return None
        weight = filter_of(call.args[1].value.numpy())
        return relax.op.nn.conv2d(self.in_new_shape(call.args[0]), relax.const(weight, str(weight.dtype)))

    def new_shape(self, shape: Shape) -> Shape | None:
        return (*shape, *_PIXEL) if len(shape) <= 2 else None

    def old_shape(self, shape: Shape) -> Shape:
        return shape[:-2]


@relax.expr_functor.mutator
class _Lowerer(_Rewriter):
    def rewritten(self, call: relax.Call) -> Any:
        if not _is_one_pixel(call):
            return None
        weight = call.args[1].value.numpy()
        weight = np.ascontiguousarray(weight.reshape(weight.shape[:2]).T)
        return relax.op.matmul(self.in_new_shape(call.args[0]), relax.const(weight, str(weight.dtype)))

    def new_shape(self, shape: Shape) -> Shape | None:
        return shape[:-2] if len(shape) >= 2 and shape[-2:] == _PIXEL else None

    def old_shape(self, shape: Shape) -> Shape:
        return *shape, *_PIXEL


def _is_pruned_linear(call: relax.Call) -> bool:
    if operator(call) != "relax.matmul" or not is_constant(call.args[1]) or len(static_shape(call.args[0]) or ()) != 2:
        return False
    return str(call.args[0].ty.dtype) == str(call.ty.dtype) == "float32" and is_pruned(call.args[1].value.numpy())


def _is_one_pixel(call: relax.Call) -> bool:
    """Whether this is a convolution of images of one pixel with a constant filter, ungrouped."""
    if operator(call) != "relax.nn.conv2d" or not is_constant(call.args[1]) or int(call.attrs.groups) != 1:
        return False
    x, weight = static_shape(call.args[0]) or (), static_shape(call.args[1]) or ()
    plain = (str(call.attrs.data_layout), str(call.attrs.kernel_layout)) == ("NCHW", "OIHW")
    return plain and x[2:] == weight[2:] == _PIXEL and not any(int(pad) for pad in call.attrs.padding)


def lift_linear_layers(module: tvm.IRModule) -> tvm.IRModule:
    """Rewrite every pruned linear layer of "main" as a convolution."""
    if not any(_is_pruned_linear(value) for _, value in bindings_of(module["main"]) if isinstance(value, relax.Call)):
        return module
    lifter = _Lifter(module)
    lifter.builder_.update_func(module.get_global_var("main"), lifter.visit_expr(module["main"]))
    return lifter.builder_.get()


def lower_linear_layers(module: tvm.IRModule) -> tvm.IRModule:
    """Rewrite every convolution of images of one pixel in "main" as a linear layer, for which there are rules."""
    lowerer = _Lowerer(module)
    lowerer.builder_.update_func(module.get_global_var("main"), lowerer.visit_expr(module["main"]))
    return lowerer.builder_.get()
