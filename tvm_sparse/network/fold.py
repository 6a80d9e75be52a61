"""Batch norms, per-channel scales, shifts and zero padding folded into the convolutions before or behind them.

Relax's own FoldBatchnormToConv2D misses a batch norm behind a convolution that has a bias.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvm_sparse.network.imported import (
    Array,
    bindings_of,
    is_constant,
    operator,
    per_channel,
    static_shape,
    variables_in,
)


@dataclass(frozen=True)
class _Affine:
    """scale[k] * conv + shift[k], float64; `folded` counts the operators it stands for."""

    conv: relax.Call
    scale: Array
    shift: Array
    folded: int


@relax.expr_functor.mutator
class _Folder(relax.PyExprMutator):
    """Matches on the function as it was and rebuilds it bottom up; what became unused goes with dead code."""

    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        main = module["main"]
        self._values: dict[relax.Var, Any] = dict(bindings_of(main))
        self._uses: Counter[relax.Var] = Counter(variables_in(main.body.body))
        for _, value in bindings_of(main):
            self._uses.update(variables_in(value))

    def visit_call_(self, call: relax.Call) -> Any:
        folded = self._folded(call)
        return self.visit_expr_post_order(call) if folded is None else folded

    def visit_tuple_getitem_(self, item: relax.TupleGetItem) -> Any:
        folded = self._folded(item)
        return self.visit_expr_post_order(item) if folded is None else folded

    def _folded(self, expr: Any) -> Any:
        affine = self._affine(expr)
        if affine is None:
            return None
        weight = affine.conv.args[1].value.numpy()
        source, padding = self._unpadded(affine.conv)
        if affine.folded < 2 and source.same_as(affine.conv.args[0]):
            return None
        attrs = affine.conv.attrs
        if affine.folded:
            weight = (weight * affine.scale[:, None, None, None]).astype(weight.dtype)
        result = relax.op.nn.conv2d(
            self.visit_expr(source),
            relax.const(weight, str(weight.dtype)),
            strides=[int(stride) for stride in attrs.strides],
            padding=padding,
            dilation=[int(step) for step in attrs.dilation],
            groups=int(attrs.groups),
            out_dtype=attrs.out_dtype,
        )
        if affine.folded:
            shift = affine.shift.astype(str(affine.conv.ty.dtype)).reshape(1, -1, 1, 1)
            result = relax.op.add(self.builder_.emit(result), relax.const(shift, str(shift.dtype)))
        return result

    def _affine(self, expr: Any) -> _Affine | None:
        """What `expr` is as a scaled and shifted convolution with a constant filter, or None."""
        if isinstance(expr, relax.TupleGetItem):
            return self._batch_norm(expr)
        name = operator(expr)
        if name == "relax.nn.conv2d":
            plain = (expr.attrs.data_layout, expr.attrs.kernel_layout) == ("NCHW", "OIHW") and is_constant(expr.args[1])
            if not plain or static_shape(expr) is None or not str(expr.ty.dtype).startswith("float"):
                return None
            k = static_shape(expr.args[1])[0]  # type: ignore[index]
            return _Affine(expr, np.ones(k), np.zeros(k), 0)
        if name not in ("relax.add", "relax.subtract", "relax.multiply", "relax.divide"):
            return None
        left, right = expr.args
        if is_constant(left) and name in ("relax.add", "relax.multiply"):
            left, right = right, left
        before = self._single_use(left) if is_constant(right) else None
        vector = None if before is None else per_channel(right.value.numpy().astype(np.float64), len(before.scale))
        if before is None or vector is None:
            return None
        if name == "relax.add":
            return _Affine(before.conv, before.scale, before.shift + vector, before.folded + 1)
        if name == "relax.subtract":
            return _Affine(before.conv, before.scale, before.shift - vector, before.folded + 2)
        factor = vector if name == "relax.multiply" else 1 / vector
        return _Affine(before.conv, before.scale * factor, before.shift * factor, before.folded + 2)

    def _batch_norm(self, item: relax.TupleGetItem) -> _Affine | None:
        norm: Any = self._values.get(item.tuple_value)
        if item.index != 0 or operator(norm) != "relax.nn.batch_norm" or self._uses[item.tuple_value] != 1:
            return None
        before = self._single_use(norm.args[0])
        if before is None or int(norm.attrs.axis) != 1 or not all(is_constant(arg) for arg in norm.args[1:5]):
            return None
        gamma, beta, mean, variance = (arg.value.numpy().astype(np.float64) for arg in norm.args[1:5])
        with np.errstate(all="ignore"):  # a negative variance gives NaN, which the importer reports by name
            scale = 1 / np.sqrt(variance + float(norm.attrs.epsilon))
        scale = scale * gamma if norm.attrs.scale else scale
        shift = (before.shift - mean) * scale + (beta if norm.attrs.center else 0)
        return _Affine(before.conv, before.scale * scale, shift, before.folded + 2)

    def _single_use(self, expr: Any) -> _Affine | None:
        return self._affine(self._values[expr]) if self._uses[expr] == 1 and expr in self._values else None

    def _unpadded(self, conv: relax.Call) -> tuple[Any, list[int]]:
        """The convolution's input before any zero padding, and (top, left, bottom, right) with that padding."""
        source, padding = conv.args[0], [int(pad) for pad in conv.attrs.padding]
        while source in self._values and operator(pad := self._values[source]) == "relax.nn.pad":
            widths = [int(width) for width in pad.attrs.pad_width]
            zero = pad.attrs.pad_mode == "constant" and float(pad.attrs.pad_value) == 0
            if not zero or len(widths) != 8 or any(widths[:4]) or min(widths) < 0:
                break
            top, bottom, left, right = widths[4:]
            padding = [padding[0] + top, padding[1] + left, padding[2] + bottom, padding[3] + right]
            source = pad.args[0]
        return source, padding


def fold_into_convolutions(module: tvm.IRModule) -> tvm.IRModule:
    """Fold what is affine per channel, and zero padding, into every conv2d of "main" with a constant filter."""
    folder = _Folder(module)
    folder.builder_.update_func(module.get_global_var("main"), folder.visit_expr(module["main"]))
    return folder.builder_.get()
