"""What every importer hands on: one Relax function, the names of its convolutions, the original to compare with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvm_sparse.deploy.metadata import TensorSpec
from tvm_sparse.errors import ModelError

Array = np.ndarray[Any, Any]
Reference = Callable[[Mapping[str, Array]], list[Array]]

CONVOLUTIONS = tuple(
    f"relax.nn.{name}"
    for name in ("conv1d", "conv2d", "conv3d", "conv1d_transpose", "conv2d_transpose", "conv3d_transpose")
)


@dataclass(frozen=True)
class ConvInfo:
    """One convolution with a constant filter: the user's name, the Relax operator, the filter's shape."""

    name: str
    op: str
    filter_shape: tuple[int, ...]


@dataclass(frozen=True)
class ImportedModel:
    """A model as one Relax function.

    Attributes
    ----------
    name
        The file's stem, or the graph's own name.
    module
        One Relax function "main" whose parameters are `inputs` in order. Weights are constants, batch norms and
        constants are folded, one-dimensional convolutions are two-dimensional with h = 1.
    convolutions
        In the order of the calls of `CONVOLUTIONS` with a constant filter in the bindings of "main".
    reference
        The original framework: inputs by name -> outputs in order, or None where it is not installed. It takes the
        number of threads from its attribute `threads`.
    """

    name: str
    module: tvm.IRModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    convolutions: tuple[ConvInfo, ...]
    reference: Reference | None


def one_line(error: object, limit: int = 300) -> str:
    """The text of an error on one line, cut after `limit` characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def times(shape: Iterable[object]) -> str:
    """A shape as the command line writes it: 1x3x224x224."""
    return "x".join(map(str, shape))


def is_constant(expr: Any) -> bool:
    """Whether a Relax expression is a tensor constant."""
    return isinstance(expr, tvm.ir.GenericConst)


def bindings_of(function: relax.Function) -> list[tuple[relax.Var, Any]]:
    """(variable, value) of every binding of a Relax function, in order."""
    return [(binding.var, binding.value) for block in function.body.blocks for binding in block.bindings]


def operator(expr: Any) -> str | None:
    """The name of the operator that a Relax expression calls, if it is such a call."""
    return str(expr.op.name) if isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op) else None


def convolution_calls(function: relax.Function) -> list[relax.Call]:
    """The convolutions of a Relax function in the order of its bindings, those with a computed filter too."""
    return [value for _, value in bindings_of(function) if operator(value) in CONVOLUTIONS]


def variables_in(expr: Any) -> list[relax.Var]:
    """The variables that a Relax expression reads."""
    found: list[relax.Var] = []

    def visit(node: Any) -> None:
        if isinstance(node, relax.Var) and not isinstance(node, tvm.ir.GlobalVar):
            found.append(node)

    relax.analysis.post_order_visit(expr, visit)
    return found


def reader_counts(function: relax.Function) -> Counter[relax.Var]:
    """How many bindings of a Relax function read each variable, its result counted as one."""
    counts: Counter[relax.Var] = Counter(variables_in(function.body.body))
    for _, value in bindings_of(function):
        counts.update(variables_in(value))
    return counts


def scalar(expr: Any) -> float | None:
    """The value of a number, or of a constant with one element."""
    if isinstance(expr, (tvm.tirx.IntImm, tvm.tirx.FloatImm)):
        return float(expr.value)
    if not is_constant(expr):
        return None
    array = expr.value.numpy()
    return float(array.reshape(())) if array.size == 1 else None


def per_channel(array: Array, k: int) -> Array | None:
    """A constant that has one value for each of k channels of (n, k, p, q), or one for all: as (k,)."""
    shape = (1,) * (4 - array.ndim) + array.shape
    if len(shape) != 4 or shape[0] != 1 or shape[2:] != (1, 1) or shape[1] not in (1, k):
        return None
    return np.broadcast_to(array.reshape(-1), (k,))


def static_shape(expr: Any) -> tuple[int, ...] | None:
    """The shape of a Relax tensor (or of its type) as integers, or None where it is not static."""
    shape = getattr(getattr(expr, "ty", expr), "shape", None)
    if shape is None or not hasattr(shape, "values"):
        return None
    if not all(isinstance(value, (int, tvm.tirx.IntImm)) for value in shape.values):
        return None
    return tuple(int(value) for value in shape.values)


def output_specs(function: relax.Function, names: list[str], label: str) -> tuple[TensorSpec, ...]:
    """Name the outputs of a Relax function.

    Raises
    ------
    ModelError
        When an output has no static shape.
    """
    result = function.body.body
    types = list(result.ty.fields) if isinstance(result.ty, relax.TupleType) else [result.ty]
    specs = []
    for name, type_ in zip(names, types, strict=True):
        shape = static_shape(type_)
        if shape is None:
            raise ModelError(f"{label}: the shape of output '{name}' depends on the data: {one_line(type_)}")
        specs.append(TensorSpec(name, shape, str(type_.dtype)))
    return tuple(specs)


def constant_filters(function: relax.Function) -> list[Array]:
    """The filters of the convolutions with a constant filter, in the order of `ImportedModel.convolutions`."""
    return [call.args[1].value.numpy() for call in convolution_calls(function) if is_constant(call.args[1])]


def finite_filters(module: tvm.IRModule, convolutions: tuple[ConvInfo, ...], label: str) -> None:
    """Raise a ModelError that names a layer whose batch norm made its filter infinite or NaN, if there is one."""
    for info, weight in zip(convolutions, constant_filters(module["main"]), strict=True):
        if not np.isfinite(weight).all():
            raise ModelError(f"{label}: the filter of '{info.name}' is not finite once its batch norm is folded")
