"""Simplified ONNX to Relax, with TVM's frontend and what it needs around it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import tvm
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend

from tvm_sparse.errors import ModelError
from tvm_sparse.network.imported import is_constant, one_line
from tvm_sparse.network.onnx_model import node_name, refuse_operators

_log = logging.getLogger(__name__)
# control flow would need a module of more than one dataflow block, which the later passes do not handle
_CONTROL_FLOW = ("If", "Loop", "Scan")


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the prints and warnings of onnxslim and the frontend off the user's terminal."""
    sink = io.StringIO()
    slim_log = logging.getLogger("onnxslim")
    was = slim_log.disabled
    slim_log.disabled = True
    try:
        with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        slim_log.disabled = was


def slim_model(model: onnx.ModelProto, label: str) -> onnx.ModelProto:
    """The model after onnxslim with its shapes inferred, or only the latter (and a warning) where onnxslim fails."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    try:
        with _silence():
            import onnxslim

            slimmed = onnxslim.slim(copy)
    except Exception as error:
        _log.warning("%s: onnxslim failed, the model is compiled as it is (%s)", label, one_line(error))
        slimmed = model
    with _silence():
        return onnx.shape_inference.infer_shapes(slimmed, data_prop=True)


def convert_model(model: onnx.ModelProto, label: str) -> tvm.IRModule:
    """The Relax module of a model with pinned shapes.

    Raises
    ------
    ModelError
        When an operator is unsupported, or the frontend fails: naming the node.
    """
    known = onnx_frontend._get_convert_map()
    unsupported = [
        node
        for node in model.graph.node
        if node.op_type in _CONTROL_FLOW
        or node.domain not in ("", "ai.onnx", "com.microsoft")
        or (node.op_type not in known and node.op_type != "Constant")
    ]
    refuse_operators(unsupported, label)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    importer = _Importer(label, {node.output[0]: node for node in model.graph.node if node.output})
    try:
        with _silence():
            return importer.from_onnx(model.graph, opset)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{label}: the graph cannot be converted ({one_line(error)})") from error


class _Importer(onnx_frontend.ONNXGraphImporter):
    """TVM's importer, which names the node in its errors and keeps Clip and Pad as operators of the graph.

    The stock one lowers Clip and Pad to tensor programs at once, where no pattern finds them any more.
    """

    def __init__(self, label: str, nodes: dict[str, onnx.NodeProto]) -> None:
        super().__init__({}, "float32")
        self._label = label

    def _convert_operator(self, op_name: str, inputs: Any, attrs: dict[str, Any], opset: int) -> relax.Expr:
        name = attrs["tvm_custom"]["name"]
        try:
            expr = self._own(op_name, inputs, attrs, opset)
            if expr is None:
                return super()._convert_operator(op_name, inputs, attrs, opset)
            return self.bb.normalize(expr)
        except Exception as error:
            self.bb._end_block()  # or TVM complains on the terminal when the builder goes
            where = f"{self._label}: {op_name} node '{name}'"
            raise ModelError(f"{where} cannot be converted ({one_line(error)})") from error

    def _own(self, op_name: str, inputs: Any, attrs: dict[str, Any], opset: int) -> relax.Expr | None:
        if op_name == "Clip":
            return _clip(inputs, attrs)
        if op_name == "Pad":
            return _pad(inputs, attrs)
        return None


def _clip(inputs: Any, attrs: dict[str, Any]) -> relax.Expr | None:
    if not str(inputs[0].ty.dtype).startswith("float"):
        return None
    bounds = []
    for position, (key, free) in enumerate((("min", -np.inf), ("max", np.inf)), start=1):
        bound = inputs[position] if len(inputs) > position else None
        if bound is not None and not is_constant(bound):
            return None
        value = float(bound.value.numpy().reshape(())) if bound is not None else float(attrs.get(key, free))
        bounds.append(free if np.isnan(value) else value)
    return relax.op.clip(inputs[0], *bounds)


def _pad(inputs: Any, attrs: dict[str, Any]) -> relax.Expr | None:
    given = inputs[1].value.numpy() if len(inputs) > 1 and is_constant(inputs[1]) else attrs.get("pads")
    value = inputs[2] if len(inputs) > 2 else None
    axes = inputs[3] if len(inputs) > 3 else None
    constant = attrs.get("mode", b"constant") == b"constant" and (value is None or is_constant(value))
    if given is None or axes is not None or not constant or min(given, default=0) < 0:
        return None
    half = len(given) // 2
    widths = [int(width) for pair in zip(given[:half], given[half:], strict=True) for width in pair]
    fill = float(value.value.numpy().reshape(())) if value is not None else float(attrs.get("value", 0.0))
    return relax.op.nn.pad(inputs[0], widths, "constant", fill)


def explicit_padding(model: onnx.ModelProto, label: str) -> None:
    """Replace auto_pad of every convolution by explicit pads, in place; shapes have been inferred.

    Raises
    ------
    ModelError
        When SAME padding depends on an input of unknown size.
    """
    shapes = _known_shapes(model)
    for node in model.graph.node:
        if node.op_type != "Conv":
            continue
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        mode = attributes.get("auto_pad", b"NOTSET").decode()
        if mode == "NOTSET":
            continue
        filter_shape, data = shapes.get(node.input[1]), shapes.get(node.input[0])
        if filter_shape is None or data is None:
            raise ModelError(f"{label}: {mode} padding of Conv node '{node_name(node)}' needs an input of known size")
        pads = [0] * (2 * (len(filter_shape) - 2))
        if mode != "VALID":
            pads = _same_pads(data[2:], filter_shape[2:], attributes, lower=mode == "SAME_LOWER")
        kept = [attribute for attribute in node.attribute if attribute.name not in ("auto_pad", "pads")]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute("pads", pads)])


def _same_pads(sizes: tuple[int, ...], kernel: tuple[int, ...], attributes: dict[str, Any], lower: bool) -> list[int]:
    """ONNX's rule: ceil(size / stride) outputs, the odd pixel of padding at the end (SAME_UPPER) or start."""
    strides = attributes.get("strides", [1] * len(sizes))
    dilations = attributes.get("dilations", [1] * len(sizes))
    begin, end = [], []
    for size, extent, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + (extent - 1) * dilation + 1 - size)
        small, large = total // 2, total - total // 2
        begin.append(large if lower else small)
        end.append(small if lower else large)
    return begin + end


def _known_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    shapes = {init.name: tuple(init.dims) for init in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    shapes[node.output[0]] = tuple(attribute.t.dims)
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if all(dim.dim_value > 0 for dim in dims):
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
    return shapes
