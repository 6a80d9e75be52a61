"""Store what flows between layers, and the filters, in 16 bits; sum in float32.

A network of float32 keeps its inputs and outputs as they are. Convolutions, what is fused behind them, and operators
that only move or compare values take 16-bit tensors and give them; products of matrices take 16-bit tensors and give
float32; every other operator gets its inputs, and computes, in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvm_sparse.errors import InputError
from tvm_sparse.network.imported import ImportedModel, is_constant, operator
from tvm_sparse.network.response_norm import fuse_response_norms

PRECISIONS = ("float32", "float16", "bfloat16")

_MOVES = (
    "add subtract multiply divide maximum minimum clip concat reshape flatten permute_dims squeeze expand_dims "
    "strided_slice split nn.conv2d nn.relu nn.leakyrelu nn.silu nn.max_pool2d nn.pad"
)
#: Operators from 16-bit tensors to 16-bit tensors.
IN_16_BITS = frozenset(f"relax.{name}" for name in _MOVES.split())
_MATMUL = "relax.matmul"


def stored_in(model: ImportedModel, precision: str) -> ImportedModel:
    """The model with its network stored in `precision`; its inputs, outputs and reference stay what they are."""
    return replace(model, module=store_in(model.module, precision))


def check_precision(precision: str, target: str) -> None:
    """Refuse a precision that is none, or that the target has no kernels for, before any long work.

    Raises
    ------
    InputError
        On such a precision.
    """
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    if precision != "float32" and target != "cuda":
        raise InputError(f"precision {precision} is for --target cuda: there are no 16-bit kernels for {target}")


def store_in(module: tvm.IRModule, dtype: str) -> tvm.IRModule:
    """The module with the float32 activations and constants of "main" stored in `dtype`, one of PRECISIONS."""
    if dtype == "float32":
        return module
    # Before its squares, which float16 may not hold, are operators of their own.
    module = _results_cast(fuse_response_norms(module))
    mutator = _Narrower(module, dtype)
    mutator.builder_.update_func(module.get_global_var("main"), mutator.visit_expr(module["main"]))
    tidy = tvm.transform.Sequential(
        [relax.transform.CanonicalizeBindings(), relax.transform.DeadCodeElimination(["main"])]
    )
    return tidy(mutator.builder_.get())


def sum_in_float32(module: tvm.IRModule) -> tvm.IRModule:
    """Have what is left of 16-bit convolutions and matrix products in "main", beside our kernels, sum in float32."""
    mutator = _Summer(module)
    mutator.builder_.update_func(module.get_global_var("main"), mutator.visit_expr(module["main"]))
    return mutator.builder_.get()


def _results_cast(module: tvm.IRModule) -> tvm.IRModule:
    """Every float32 result of "main" through a cast to what it is: where it comes back from 16 bits."""
    main = module["main"]
    if not main.body.blocks:  # it gives back what it takes
        return module
    *before, last = main.body.blocks
    builder, bindings, result = relax.BlockBuilder(module), list(last.bindings), main.body.body

    def bound(value: Any, kind: Any = relax.DataflowVar) -> Any:
        value = builder.normalize(value)
        bindings.append(relax.VarBinding(kind("result", value.ty), value))
        return bindings[-1].var

    def cast(value: Any) -> Any:
        if isinstance(value.ty, relax.TupleType):
            items = [bound(relax.TupleGetItem(value, index)) for index in range(len(value.ty.fields))]
            return relax.Tuple([cast(item) for item in items])
        return bound(relax.op.astype(value, "float32")) if _dtype(value) == "float32" else value

    body = bound(cast(result), relax.Var)
    sequence = relax.SeqExpr([*before, type(last)(bindings)], body)
    builder.update_func(
        module.get_global_var("main"), relax.Function(main.params, sequence, main.ret_ty, main.is_pure, main.attrs)
    )
    return builder.get()


def _dtype(expr: Any) -> str:
    """The element type of a tensor, "" for anything else."""
    return str(expr.ty.dtype) if isinstance(getattr(expr, "ty", None), relax.TensorType) else ""


@relax.expr_functor.mutator
class _Narrower(relax.PyExprMutator):
    def __init__(self, module: tvm.IRModule, dtype: str) -> None:
        super().__init__(module)
        self._narrow = dtype
        self._cast: dict[tuple[relax.Var, str], relax.Var] = {}

    def visit_call_(self, call: relax.Call) -> Any:
        name, args = operator(call), [self.visit_expr(arg) for arg in call.args]
        if name == "relax.astype":
            return relax.Call(call.op, args, call.attrs)
        narrow = self._narrowed(args) if name == _MATMUL or name in IN_16_BITS else None
        if narrow is None:
            args = [self._as_before(arg, old) for arg, old in zip(args, call.args, strict=True)]
            return relax.Call(call.op, args, call.attrs, call.ty_args)
        if name == _MATMUL and _dtype(call) == "float32":
            return relax.op.matmul(*narrow, out_dtype="float32")
        return relax.Call(call.op, narrow, call.attrs, call.ty_args)

    def _narrowed(self, args: Sequence[Any]) -> list[Any] | None:
        """The arguments in 16 bits, or None where a constant does not fit them."""
        found = []
        for arg in args:
            if isinstance(arg, relax.Tuple):
                fields = self._narrowed(arg.fields)
                if fields is None:
                    return None
                found.append(relax.Tuple(fields))
                continue
            narrowed = self._as(arg, self._narrow) if _dtype(arg) == "float32" else arg
            if narrowed is None:
                return None
            found.append(narrowed)
        return found

    def _as_before(self, arg: Any, old: Any) -> Any:
        """An argument in the dtype it had in the original."""
        if isinstance(arg, relax.Tuple):
            fields = zip(arg.fields, old.fields, strict=True)
            return relax.Tuple([self._as_before(*pair) for pair in fields])
        dtype = _dtype(old)
        return self._as(arg, dtype) if dtype and dtype != _dtype(arg) else arg

    def _as(self, expr: Any, dtype: str) -> Any:
        if is_constant(expr):
            with np.errstate(over="ignore"):
                array = expr.value.numpy()
                narrowed = array.astype(dtype)
            return relax.const(narrowed, dtype) if (np.isfinite(narrowed) == np.isfinite(array)).all() else None
        key = (expr, dtype)
        if key not in self._cast:
            self._cast[key] = self.builder_.emit(relax.op.astype(expr, dtype))
        return self._cast[key]


@relax.expr_functor.mutator
class _Summer(relax.PyExprMutator):
    def visit_call_(self, call: relax.Call) -> Any:
        call = self.visit_expr_post_order(call)
        dtype = _dtype(call)
        if operator(call) not in ("relax.nn.conv2d", _MATMUL) or dtype not in PRECISIONS or dtype == "float32":
            return call
        if operator(call) == _MATMUL:
            return relax.op.astype(self.builder_.emit(relax.op.matmul(*call.args, out_dtype="float32")), dtype)
        attrs = call.attrs
        names = ("strides", "padding", "dilation", "groups", "data_layout", "kernel_layout", "out_layout")
        options = {name: getattr(attrs, name) for name in names}
        summed = self.builder_.emit(relax.op.nn.conv2d(*call.args, **options, out_dtype="float32"))
        return relax.op.astype(summed, dtype)
