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
from tvm_sparse.network.imported import is_constant, one_line, static_shape, times
from tvm_sparse.network.onnx_model import refuse_operators

_log = logging.getLogger(__name__)
_SLIDING = ("Conv", "ConvTranspose", "MaxPool", "AveragePool")
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
    inputs = list(model.graph.input)  # onnxslim drops those that nothing reads
    del slimmed.graph.input[:]
    slimmed.graph.input.extend(inputs)
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
        if node.op_type in _CONTROL_FLOW or (node.op_type not in known and node.op_type != "Constant")
    ]
    refuse_operators(unsupported, label)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    importer = _Importer(label, {node.output[0]: node for node in model.graph.node if node.output})
    try:
        with _silence():
            return importer.from_onnx(model.graph, opset)
    except Exception as error:
        with contextlib.suppress(Exception):
            importer.bb._end_block()  # or TVM complains on the terminal when the builder goes
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{label}: the graph cannot be converted ({one_line(error)})") from error


class _Importer(onnx_frontend.ONNXGraphImporter):
    """TVM's importer, which names the node in its errors and keeps Clip and Pad as operators of the graph.

    The stock one lowers Clip and Pad to tensor programs at once, where no pattern finds them any more.
    """

    def __init__(self, label: str, nodes: dict[str, onnx.NodeProto]) -> None:
        super().__init__({}, "float32")
        self._label = label

    def _convert_operator(self, op_name: str, inputs: Any, attrs: dict[str, Any], opset: int) -> relax.Expr:
        where = f"{self._label}: {op_name} node '{attrs['tvm_custom']['name']}'"
        try:
            own = self._own(op_name, inputs, attrs, opset)
            expr = super()._convert_operator(op_name, inputs, attrs, opset) if own is None else self.bb.normalize(own)
        except Exception as error:
            raise ModelError(f"{where} cannot be converted ({one_line(error)})") from error
        if op_name in _SLIDING and min(static_shape(expr) or (1,)) < 1:
            shapes = " and ".join(times(static_shape(arg) or "?") for arg in list(inputs)[:2] if arg is not None)
            raise ModelError(f"{where} has no output pixel: its kernel is larger than its padded input ({shapes})")
        return expr

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
