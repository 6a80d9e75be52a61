"""Small ONNX models for the tests of this room, and what checks an import against onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import tvm
from onnx import TensorProto, helper, numpy_helper
from tvm import relax

from tvm_sparse.network.imported import ImportedModel

Array = np.ndarray[Any, Any]
Shape = Sequence[int | str | None]


def tensor(name: str, shape: Shape | None, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def weights(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, Array],
    inputs: Sequence[onnx.ValueInfoProto] | None = None,
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
) -> onnx.ModelProto:
    """A model named "net" with float32 outputs of unknown shape."""
    graph = helper.make_graph(
        list(nodes),
        "net",
        list(inputs) if inputs is not None else [tensor("x", (1, 3, 8, 8))],
        [tensor(name, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    for value in graph.output:
        value.type.tensor_type.shape.SetInParent()
        value.type.tensor_type.ClearField("shape")
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def conv(name: str, x: str, w: str, y: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Conv", [x, *w.split()], [y], name=name, **attributes)


def one_conv(shape: Shape = (1, 3, 8, 8), weight: Array | None = None, **attributes: Any) -> onnx.ModelProto:
    """A single Conv node called "first" with the filter "w"."""
    weight = weights(4, 3, 3, 3) if weight is None else weight
    return model([conv("first", "x", "w", "y", **attributes)], {"w": weight}, [tensor("x", shape)])


def batch_norm(x: str, y: str, k: int, variance: float | None = None) -> tuple[onnx.NodeProto, dict[str, Array]]:
    names = [f"{y}.{part}" for part in ("scale", "shift", "mean", "var")]
    values = [weights(k, seed=index) for index in range(4)]
    values[3] = np.abs(values[3]) + 0.5 if variance is None else np.full(k, variance, np.float32)
    return helper.make_node("BatchNormalization", [x, *names], [y]), dict(zip(names, values, strict=True))


def run(imported: ImportedModel, inputs: dict[str, Array]) -> list[Array]:
    """The module through stock TVM."""
    machine = relax.VirtualMachine(tvm.compile(imported.module, target="llvm"), tvm.cpu())
    result = machine["main"](*(tvm.runtime.tensor(inputs[spec.name]) for spec in imported.inputs))
    return [result.numpy()] if hasattr(result, "numpy") else [item.numpy() for item in result]


def random_inputs(imported: ImportedModel, seed: int = 0) -> dict[str, Array]:
    generator = np.random.default_rng(seed)
    return {spec.name: generator.standard_normal(spec.shape).astype(spec.dtype) for spec in imported.inputs}


def assert_matches_reference(imported: ImportedModel, tolerance: float = 1e-5) -> None:
    """Stock TVM on the imported module against the original framework, relative to the largest output."""
    assert imported.reference is not None
    inputs = random_inputs(imported)
    for spec, ours, theirs in zip(imported.outputs, run(imported, inputs), imported.reference(inputs), strict=True):
        assert ours.shape == theirs.shape == spec.shape
        assert str(ours.dtype) == str(theirs.dtype) == spec.dtype
        assert np.isfinite(ours).all()
        assert np.abs(ours - theirs).max() <= tolerance * max(float(np.abs(theirs).max()), 1e-3), spec.name
