"""Reading an ONNX model, pinning its shapes and refusing what cannot be compiled, before any conversion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import numpy_helper

from tvm_sparse.errors import ModelError
from tvm_sparse.network.imported import Array, one_line
from tvm_sparse.network.shapes import NAMELESS, pin_shapes

_MAX_CHECKED_BYTES = 2**31 - 1
_NAMELESS = ("", "?", "-1", "None")  # what exporters write for a size they do not know
_OLDEST_OPSET = 7
_RAISED_OPSET = 13
_DOMAINS = ("", "ai.onnx", "com.microsoft")
_NO_NUMBERS = ("UNDEFINED", "STRING", "COMPLEX64", "COMPLEX128")
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization")


def load_model(source: str | Path | onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """Read an ONNX model.

    Returns
    -------
    tuple
        A model that may be changed freely, with functions inlined and no constant among its inputs; a label for
        messages.

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
    inputs = graph_inputs(model)
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 4)  # before that, constants had to be listed as inputs too
    return _modern(model, label), label


def inferred(model: onnx.ModelProto, label: str) -> onnx.ModelProto:
    """The model with the shapes of its tensors inferred, checked by ONNX's own checker.

    Raises
    ------
    ModelError
        When the model breaks a rule of ONNX.
    """
    try:
        # the checker wants a shape on every output, which exporters leave out
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        if model.ByteSize() < _MAX_CHECKED_BYTES:
            onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise ModelError(f"{label}: invalid ONNX model: {one_line(error)}") from error
    return model


def _modern(model: onnx.ModelProto, label: str) -> onnx.ModelProto:
    """Raise operator sets that onnxslim refuses and that TVM's frontend reads with the meaning of later ones."""
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    if opset >= _OLDEST_OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, _RAISED_OPSET)
    except Exception as error:
        raise ModelError(f"{label}: opset {opset} is too old and cannot be raised ({one_line(error)})") from error


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


def pin_inputs(
    model: onnx.ModelProto, label: str, batch: int | None, shapes: Mapping[str, Sequence[int]] | None
) -> None:
    """Give every input dimension a number, in place: see `pin_shapes`.

    Raises
    ------
    InputError
        When `batch` or `shapes` do not fit the model.
    ModelError
        When a dimension stays open, or an input is not a tensor of numbers.
    """
    inputs = graph_inputs(model)
    dims: dict[str, list[int | str] | None] = {}
    for value in inputs:
        if value.type.WhichOneof("value") != "tensor_type":
            raise ModelError(f"{label}: input '{value.name}' is not a tensor")
        tensor = value.type.tensor_type
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
        if kind in _NO_NUMBERS:
            raise ModelError(f"{label}: input '{value.name}' is of type {kind.lower()}, which cannot be compiled")
        dims[value.name] = [_dim(dim) for dim in tensor.shape.dim] if tensor.HasField("shape") else None
    pinned = pin_shapes(dims, label, batch, shapes)
    for value in inputs:
        shape = value.type.tensor_type.shape
        shape.SetInParent()
        del shape.dim[:]
        shape.dim.extend(onnx.TensorShapeProto.Dimension(dim_value=size) for size in pinned[value.name])
    del model.graph.value_info[:]
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value <= 0:
                dim.Clear()


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | str:
    if dim.dim_value > 0:
        return int(dim.dim_value)
    return NAMELESS if dim.dim_param in _NAMELESS else str(dim.dim_param)


def graph_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs a caller feeds: without those that have an initializer."""
    constants = {init.name for init in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


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
    """Operators that nobody knows, before ONNX's checker refuses them without naming the node."""
    unknown = [
        node
        for node in model.graph.node
        if node.domain not in _DOMAINS or (node.domain != "com.microsoft" and not onnx.defs.has(node.op_type))
    ]
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
