"""Reading an ONNX model, pinning its shapes and refusing what cannot be compiled, before any conversion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import numpy_helper

from tvm_sparse.errors import InputError, ModelError
from tvm_sparse.network.imported import Array, one_line, times

_MAX_CHECKED_BYTES = 2**31 - 1
_NAMELESS = ("", "?", "-1", "None")  # what exporters write for a size they do not know
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization")


def load_model(source: str | Path | onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """Read and check an ONNX model.

    Returns
    -------
    tuple
        A model that may be changed freely, with its functions inlined, and a label for messages.

    Raises
    ------
    ModelError
        When the file is missing, truncated, no ONNX model or without its external data.
    """
    model = onnx.ModelProto()
    if isinstance(source, onnx.ModelProto):
        model.CopyFrom(source)
        label = f"ONNX model '{model.graph.name}'"
    else:
        model, label = _read(Path(source)), str(source)
    if not model.graph.node:
        raise ModelError(f"{label}: no ONNX model: it holds no graph")
    if any(init.data_location == onnx.TensorProto.EXTERNAL for init in model.graph.initializer):
        raise ModelError(f"{label}: weights are in an external file: give the path of the .onnx file beside it")
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    _refuse_unknown(model, label)
    if model.ByteSize() < _MAX_CHECKED_BYTES:
        try:
            onnx.checker.check_model(model)
        except (onnx.checker.ValidationError, ValueError) as error:
            raise ModelError(f"{label}: invalid ONNX model: {one_line(error)}") from error
    return model, label


def _read(path: Path) -> onnx.ModelProto:
    if not path.exists():
        raise ModelError(f"{path}: no such file")
    try:
        model = onnx.load_model(str(path), format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise ModelError(f"{path}: truncated, or not an ONNX file ({one_line(error)})") from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(f"{path}: its external data is missing or damaged ({one_line(error)})") from error
    return model


def pin_shapes(
    model: onnx.ModelProto, label: str, batch: int | None, shapes: Mapping[str, Sequence[int]] | None
) -> None:
    """Give every input dimension a number, in place.

    `shapes` pins whole inputs by name, `batch` what is left open of leading dimensions. A symbol that one input pins
    is pinned everywhere.

    Raises
    ------
    InputError
        When a name, rank or size does not fit the model.
    ModelError
        When a dimension stays open, or an input is not a tensor of numbers.
    """
    shapes = dict(shapes or {})
    inputs = graph_inputs(model)
    for name in shapes:
        if name not in {value.name for value in inputs}:
            known = ", ".join(value.name for value in inputs)
            raise InputError(f"{label}: no input named '{name}' to give a shape to; the inputs are {known}")
    if batch is not None and batch < 1:
        raise InputError(f"{label}: batch {batch} is not a positive number")
    symbols: dict[str, int] = {}
    for value in inputs:
        if value.type.WhichOneof("value") != "tensor_type":
            raise ModelError(f"{label}: input '{value.name}' is not a tensor")
        if value.name in shapes:
            _apply(value, [int(size) for size in shapes[value.name]], symbols, label)
    for value in inputs:
        tensor = value.type.tensor_type
        if not tensor.HasField("shape"):
            option = f"--shape {value.name}=1x3x224x224"
            raise ModelError(f"{label}: input '{value.name}' has no shape: give one, e.g. {option}")
        for axis, dim in enumerate(tensor.shape.dim):
            if dim.dim_param in symbols:
                dim.dim_value = symbols[dim.dim_param]
            if axis == 0 and batch is not None and value.name not in shapes:
                _apply_batch(value, dim, batch, label, symbols)
        _refuse_open(value, label)
    del model.graph.value_info[:]
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value <= 0:
                dim.Clear()


def graph_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs a caller feeds: without those that have an initializer."""
    constants = {init.name for init in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def _apply(value: onnx.ValueInfoProto, shape: list[int], symbols: dict[str, int], label: str) -> None:
    tensor = value.type.tensor_type
    if min(shape, default=1) < 1:
        raise InputError(f"{label}: shape {times(shape)} for input '{value.name}' has a size below 1")
    if not tensor.HasField("shape"):
        for size in shape:
            tensor.shape.dim.add().dim_value = size
    own = [dim.dim_value if dim.dim_value > 0 else dim.dim_param or "?" for dim in tensor.shape.dim]
    fits = len(own) == len(shape) and all(
        isinstance(was, str) or was == size for was, size in zip(own, shape, strict=True)
    )
    if not fits:
        raise InputError(f"{label}: shape {times(shape)} does not fit input '{value.name}', which is {times(own)}")
    for dim, size in zip(tensor.shape.dim, shape, strict=True):
        if dim.dim_param not in _NAMELESS and symbols.setdefault(dim.dim_param, size) != size:
            raise InputError(
                f"{label}: dimension '{dim.dim_param}' of input '{value.name}' cannot be {symbols[dim.dim_param]} "
                f"and {size}"
            )
        dim.dim_value = size


def _apply_batch(
    value: onnx.ValueInfoProto,
    dim: onnx.TensorShapeProto.Dimension,
    batch: int,
    label: str,
    symbols: dict[str, int],
) -> None:
    if dim.dim_value <= 0:
        if dim.dim_param not in _NAMELESS:
            symbols[dim.dim_param] = batch
        dim.dim_value = batch
    elif dim.dim_value != batch:
        raise InputError(f"{label}: batch {batch} asked for, but input '{value.name}' is fixed at {dim.dim_value}")


def _refuse_open(value: onnx.ValueInfoProto, label: str) -> None:
    dims = value.type.tensor_type.shape.dim
    still_open = [axis for axis, dim in enumerate(dims) if dim.dim_value <= 0]
    if not still_open:
        return
    own = [dim.dim_value if dim.dim_value > 0 else dim.dim_param or "?" for dim in dims]
    example = times(size if isinstance(size, int) else 224 if axis else 1 for axis, size in enumerate(own))
    option = "--batch N" if still_open == [0] else f"--shape {value.name}={example}"
    names = ", ".join(f"{axis} ('{own[axis]}')" for axis in still_open)
    where = f"{label}: input '{value.name}' ({times(own)})"
    raise ModelError(f"{where} leaves dimension {names} open: pin it with {option}")


def refuse_bad_weights(model: onnx.ModelProto, label: str) -> None:
    """Refuse NaN in any constant and infinity in the weights of a layer.

    Infinity elsewhere is legal: the limit of a Clip, the mask of an attention.

    Raises
    ------
    ModelError
        Naming the node and the tensor.
    """
    users: dict[str, onnx.NodeProto] = {}
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if name and (name not in users or (node.op_type in _WEIGHTED and position)):
                users[name] = node
    for name, array in constants_of(model):
        if array.dtype.kind not in "fc" or np.isfinite(array).all():
            continue
        node = users.get(name)
        if node is None:
            continue
        kind = "NaN" if np.isnan(array).any() else "infinity"
        if kind == "NaN" or node.op_type in _WEIGHTED:
            raise ModelError(f"{label}: {kind} in tensor '{name}' of {node.op_type} node '{node_name(node)}'")


def constants_of(model: onnx.ModelProto) -> Iterable[tuple[str, Array]]:
    """(name, values) of every initializer and Constant tensor of the main graph."""
    for init in model.graph.initializer:
        yield init.name, numpy_helper.to_array(init)
    for node in model.graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    yield node.output[0], numpy_helper.to_array(attribute.t)


def node_name(node: onnx.NodeProto) -> str:
    """The node's name, or that of its first output where it has none."""
    return str(node.name or (node.output[0] if node.output else ""))


def _refuse_unknown(model: onnx.ModelProto, label: str) -> None:
    """Operators that neither ONNX nor the frontend knows: the checker's own message would not name the node."""
    nodes = [node for node in model.graph.node if node.domain in ("", "ai.onnx")]
    unknown = [node for node in nodes if not onnx.defs.has(node.op_type)]
    refuse_operators(unknown, label)


def refuse_operators(nodes: Sequence[onnx.NodeProto], label: str) -> None:
    """Raise a ModelError that lists operators with the names of their nodes, if there are any."""
    by_type: dict[str, list[str]] = {}
    for node in nodes:
        kind = f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        by_type.setdefault(kind, []).append(node_name(node))
    if by_type:
        parts = [
            f"{kind} ({', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''})"
            for kind, names in sorted(by_type.items())[:6]
        ]
        more = f" and {len(by_type) - 6} more" if len(by_type) > 6 else ""
        raise ModelError(f"{label}: unsupported operators: {'; '.join(parts)}{more}")
