"""The torch module made of an ONNX graph computes what onnxruntime does."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from examples.networks import NAMES, build
from tests.network.onnx_models import batch_norm, conv, model, tensor, weights
from tvm_sparse.errors import ModelError
from tvm_sparse.network.onnx_import import prepared_onnx

torch = pytest.importorskip("torch")
from tvm_sparse.peers.onnx_module import fold_batch_norms, torch_module  # noqa: E402

X = (2, 4, 9, 8)


def both(proto: onnx.ModelProto, *arrays: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Outputs of torch and of onnxruntime."""
    prepared, label = prepared_onnx(proto)
    session = onnxruntime.InferenceSession(prepared.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, {value.name: x for value, x in zip(session.get_inputs(), arrays, strict=True)})
    with torch.no_grad():
        found = torch_module(prepared, label)(*map(torch.from_numpy, arrays))
    found = found if isinstance(found, tuple) else (found,)
    return [array.numpy() for array in found], expected


def node(op: str, *inputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), ["y"], name="it", **attributes)


CONSTANTS = {
    "w": weights(6, 4, 3, 3),
    "grouped": weights(6, 2, 3, 1, seed=1),
    "b": weights(6, seed=2),
    "c": weights(1, 4, 1, 1, seed=3),
    "matrix": weights(8, 5, seed=4),
    "low": np.array(-0.5, np.float32),
    "high": np.array(0.7, np.float32),
    "axes": np.array([2, 3]),
    "one": np.array([1]),
    "shape": np.array([0, -1, 8]),
    "pads": np.array([0, 0, 1, 0, 0, 0, 2, 3]),
}
OPERATORS = [
    node("Conv", "x", "w", pads=[1, 1, 1, 1]),
    node("Conv", "x", "w", "b", pads=[0, 1, 2, 1], strides=[2, 1]),
    node("Conv", "x", "w", "b", auto_pad="SAME_LOWER", strides=[2, 2]),
    node("Conv", "x", "grouped", "b", group=2, dilations=[2, 1]),
    node("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    node("MaxPool", "x", kernel_shape=[3, 2], pads=[0, 0, 1, 1]),
    node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    node("AveragePool", "x", kernel_shape=[3, 3], pads=[0, 1, 1, 1], count_include_pad=1),
    node("GlobalAveragePool", "x"),
    node("GlobalMaxPool", "x"),
    node("LRN", "x", size=3, alpha=0.4, beta=0.6, bias=1.5),
    node("Clip", "x", "low", "high"),
    node("Clip", "x", "", "high"),
    node("Relu", "x"),
    node("LeakyRelu", "x", alpha=0.3),
    node("Sigmoid", "x"),
    node("Tanh", "x"),
    node("HardSigmoid", "x", alpha=0.3, beta=0.4),
    node("HardSwish", "x"),
    node("Add", "x", "c"),
    node("Sub", "c", "x"),
    node("Mul", "x", "c"),
    node("Div", "x", "high"),
    node("MatMul", "x", "matrix"),
    node("Concat", "x", "x", axis=1),
    node("Flatten", "x"),
    node("Flatten", "x", axis=0),
    node("Reshape", "x", "shape"),
    node("Transpose", "x", perm=[0, 2, 3, 1]),
    node("Unsqueeze", "x", "one"),
    node("ReduceMean", "x", axes=[2, 3], keepdims=0),
    node("Pad", "x", "pads", "low"),
    node("Softmax", "x", axis=1),
    node("LogSoftmax", "x", axis=-1),
    node("Dropout", "x"),
    node("Identity", "x"),
]


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.op_type)
def test_an_operator(operator: onnx.NodeProto) -> None:
    used = {name: array for name, array in CONSTANTS.items() if name in operator.input}
    found, expected = both(model([operator], used, [tensor("x", X)]), weights(*X, seed=9))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "attributes", [{}, {"transB": 1}, {"transA": 1, "alpha": 0.5, "beta": 2.0}, {"alpha": 2.0, "transB": 1}], ids=str
)
@pytest.mark.parametrize("bias", [None, (5,), (3, 5)], ids=str)
def test_gemm(attributes: dict[str, Any], bias: tuple[int, ...] | None) -> None:
    constants = {"w": weights(5, 8) if attributes.get("transB") else weights(8, 5)}
    constants |= {} if bias is None else {"b": weights(*bias, seed=1)}
    x = (8, 3) if attributes.get("transA") else (3, 8)
    proto = model([node("Gemm", "x", *constants, **attributes)], constants, [tensor("x", x)])
    (ours,), (theirs,) = both(proto, weights(*x, seed=9))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_squeeze() -> None:
    constants = {"axes": np.array([2, 3])}
    proto = model([node("Squeeze", "x", "axes")], constants, [tensor("x", (2, 4, 1, 1))])
    (ours,), (theirs,) = both(proto, weights(2, 4, 1, 1))
    assert np.array_equal(ours, theirs)


def normed(second_reader: bool) -> onnx.ModelProto:
    """conv with a bias, batch norm, ReLU; `second_reader` makes the convolution an output too."""
    norm, statistics = batch_norm("conv", "norm", 6)
    nodes = [conv("first", "x", "w b", "conv"), norm, node("Relu", "norm")]
    constants = {"w": weights(6, 4, 3, 3), "b": weights(6, seed=5), **statistics}
    return model(nodes, constants, [tensor("x", X)], ["y", "conv"] if second_reader else ["y"])


@pytest.mark.parametrize("second_reader", [False, True])
def test_batch_norms_are_folded_where_nobody_else_reads(second_reader: bool) -> None:
    proto = normed(second_reader)
    found, expected = both(proto, weights(*X, seed=9))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    prepared, label = prepared_onnx(proto)
    code = torch_module(prepared, label).code
    assert ("batch_norm" in code) == second_reader


def test_a_filter_that_two_convolutions_share_is_not_folded_into() -> None:
    norm, statistics = batch_norm("conv", "norm", 4)
    nodes = [conv("first", "x", "w", "conv"), norm, conv("second", "norm", "w", "y")]
    arrays = {"w": weights(4, 4, 1, 1), **statistics}
    assert fold_batch_norms(nodes, dict(arrays), {"y"}) == nodes


def test_an_activation_overwrites_only_what_nobody_else_reads() -> None:
    nodes = [conv("first", "x", "w", "a"), node("Relu", "a"), helper.make_node("Add", ["a", "y"], ["z"])]
    constants = {"w": weights(4, 4, 1, 1)}
    (ours,), (theirs,) = both(model(nodes, constants, [tensor("x", X)], ["z"]), weights(*X, seed=9))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("vgg16", "resnet50")])
def test_the_example_networks(name: str) -> None:
    proto = build(name, batch=2)
    shape = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    (ours,), (theirs,) = both(proto, weights(*shape, seed=1))
    assert np.linalg.norm(ours - theirs) <= 2e-6 * np.linalg.norm(theirs)


@pytest.mark.parametrize(
    ("operator", "complaint"),
    [
        (node("Erf", "x"), "Erf node 'it': this operator"),
        (node("LRN", "x", size=4), "an even window"),
        (node("Flatten", "x", axis=2), "axis 2"),
        (node("AveragePool", "x", kernel_shape=[2, 2], pads=[0, 0, 1, 1]), "AveragePool node 'it'"),
        (node("MaxPool", "x", kernel_shape=[2, 2], auto_pad="SAME_UPPER"), "automatic padding"),
        (node("Pad", "x", "pads", mode="reflect"), "a mode other than constant"),
        (node("Clip", "x", "x"), "input 1 computed at run time"),
    ],
)
def test_what_has_no_counterpart_is_named(operator: onnx.NodeProto, complaint: str) -> None:
    used = {name: array for name, array in CONSTANTS.items() if name in operator.input}
    proto = model([operator], used, [tensor("x", X)])
    with pytest.raises(ModelError, match="has no counterpart in torch here") as caught:
        torch_module(proto, "net.onnx")
    assert complaint in str(caught.value) and str(caught.value).startswith("net.onnx: ")


def test_integers_stay_integers() -> None:
    nodes = [helper.make_node("Add", ["x", "one"], ["y"])]
    proto = model(nodes, {"one": np.array([1])}, [tensor("x", (3,), TensorProto.INT64)])
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    module = torch_module(proto, "net").to(torch.float16)
    assert module(torch.tensor([1, 2, 3])).tolist() == [2, 3, 4]
