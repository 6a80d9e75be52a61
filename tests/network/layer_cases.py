"""Small networks around one or a few convolutions, each with what the matcher should make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tests.network.onnx_models import Array, batch_norm, conv, model, tensor, weights
from tvm_sparse.prune import magnitude_mask

X = (1, 4, 9, 10)
Layers = dict[str, str | None]


@dataclass(frozen=True)
class LayerCase:
    """`layers` maps the name of every convolution with a constant filter to its epilogue, or to None for one that no
    template takes.
    """

    name: str
    model: onnx.ModelProto
    layers: Layers


def layer_cases() -> list[LayerCase]:
    """Every case, under a name of its own; the first input is x."""
    groups = (_epilogues, _residuals, _shared_values, _shapes, _odd_filters, _not_direct, _whole_nets)
    return [case for group in groups for case in group()]


def constant_of(case: LayerCase, name: str) -> Array:
    """One of the case's initializers."""
    return next(numpy_helper.to_array(init) for init in case.model.graph.initializer if init.name == name)


def _pruned(*shape: int, seed: int = 1, sparsity: float = 0.7) -> Array:
    weight = weights(*shape, seed=seed) / np.float32(np.sqrt(np.prod(shape[1:])))
    return np.where(magnitude_mask(weight, sparsity), weight, np.float32(0))


#: What the texts of the cases may name: the filters w and u, which go with padding, and v; the biases b and B; others.
CONSTANTS = {
    "w": _pruned(8, 4, 3, 3),
    "u": _pruned(8, 4, 3, 3, seed=5),
    "v": _pruned(8, 8, 1, 1, seed=2),
    "b": weights(8),
    "B": weights(1, 8, 1, 1, seed=3),
    "zero": np.array(0, np.float32),
    "six": np.array(6, np.float32),
    "low": np.array(-0.3, np.float32),
    "high": np.array(0.4, np.float32),
    "m": weights(8, 5),
    "n": weights(5, seed=6),
}


def _op(kind: str, inputs: str, y: str, **attributes: object) -> NodeProto:
    return helper.make_node(kind, [name.strip("-") for name in inputs.split()], [y], **attributes)


def _nodes(text: str) -> list[NodeProto]:
    """Nodes of a text: "c: x w > a; Relu a > y" is a Conv named c with the filter w, and a Relu; "-" is no input."""
    nodes = []
    for statement in text.split("; "):
        left, y = statement.split(" > ")
        kind, x, *others = left.split()
        if kind.endswith(":"):
            padding = {"pads": [1] * 4} if others[0] in ("w", "u") else {}
            nodes.append(conv(kind[:-1], x, " ".join(others), y, **padding))
        else:
            nodes.append(_op(kind, " ".join((x, *others)), y))
    return nodes


def _case(
    name: str,
    layers: Layers,
    nodes: str | Sequence[NodeProto],
    x: Sequence[int] = X,
    z: Sequence[int] | None = None,
    outputs: str = "y",
    types: Sequence[int] = (TensorProto.FLOAT,) * 2,
    **constants: Array,
) -> LayerCase:
    """`z` is the shape of a second input, `types` are those of x and of the first output."""
    nodes = _nodes(nodes) if isinstance(nodes, str) else nodes
    used = {tensor for node in nodes for tensor in node.input}
    constants = {name: array for name, array in (CONSTANTS | constants).items() if name in used}
    inputs = [tensor("x", x, types[0]), *([tensor("z", z)] if z else [])]
    built = model(nodes, constants, inputs, outputs.split())
    built.graph.output[0].type.tensor_type.elem_type = types[1]
    return LayerCase(name, built, layers)


def _epilogues() -> list[LayerCase]:
    norm, parameters = batch_norm("a", "norm", 8)
    normed = [*_nodes("c: x w > a"), norm]
    gate = [*_nodes("c: x w > a"), _op("HardSigmoid", "a", "s", alpha=1 / 6, beta=0.5), *_nodes("Mul s a > y")]
    leaky = [*_nodes("c: x w > a"), _op("LeakyRelu", "a", "y", alpha=0.2)]
    return [
        _case("plain", {"c": "none"}, "c: x w > y"),
        _case("bias", {"c": "bias"}, "c: x w b > y"),
        _case("added bias", {"c": "bias"}, "c: x w > a; Add a B > y"),
        _case("bias added to", {"c": "bias"}, "c: x w > a; Add B a > y"),
        _case("scalar bias", {"c": "bias"}, "c: x w > a; Add a high > y"),
        _case("bias twice", {"c": "bias"}, "c: x w b > a; Add a B > y"),
        _case("bias per pixel", {"c": "none"}, "c: x w > a; Add a i > y", i=weights(1, 1, 9, 10)),
        _case("bias of all elements", {"c": "residual"}, "c: x w > a; Add a i > y", i=weights(1, 8, 9, 10)),
        _case("batch norm", {"c": "bias"}, [*normed, *_nodes("Identity norm > y")], **parameters),
        _case("batch norm, relu", {"c": "bias+relu"}, [*normed, *_nodes("Relu norm > y")], **parameters),
        _case("relu", {"c": "relu"}, "c: x w > a; Relu a > y"),
        _case("relu6", {"c": "relu6"}, "c: x w > a; Clip a zero six > y"),
        _case("clip", {"c": "clip(-0.3,0.4)"}, "c: x w > a; Clip a low high > y"),
        _case("clip from below", {"c": "clip(-0.3,inf)"}, "c: x w > a; Clip a low > y"),
        _case("clip from above", {"c": "clip(-inf,0.4)"}, "c: x w > a; Clip a - high > y"),
        _case("silu", {"c": "silu"}, "c: x w > a; Sigmoid a > s; Mul a s > y"),
        _case("silu the other way", {"c": "silu"}, "c: x w > a; Sigmoid a > s; Mul s a > y"),
        _case("hard-swish", {"c": "hard_swish"}, "c: x w > a; HardSwish a > y"),
        _case("hard-sigmoid gate", {"c": "hard_swish"}, gate),
        _case("bias, hard-swish", {"c": "bias+hard_swish"}, "c: x w > a; Add a B > t; HardSwish t > y"),
        _case("two activations", {"c": "relu"}, "c: x w > a; Relu a > r; HardSwish r > y"),
        _case("tanh", {"c": "none"}, "c: x w > a; Tanh a > y"),
        _case("leaky relu", {"c": "none"}, leaky),
    ]


def _residuals() -> list[LayerCase]:
    block = "c: x w > a; Relu a > r; e: r v > d; "
    first = {"c": "relu"}
    both = "c: x w > a; e: x u > d; "
    wide = (1, 8, 9, 10)
    return [
        _case("residual", first | {"e": "residual"}, block + "Add d r > y"),
        _case("residual on the left", first | {"e": "residual"}, block + "Add r d > y"),
        _case("residual, relu", first | {"e": "residual+relu"}, block + "Add r d > s; Relu s > y"),
        _case(
            "bias, residual, relu6",
            first | {"e": "bias+residual+relu6"},
            "c: x w > a; Relu a > r; e: r v b > d; Add d r > s; Clip s zero six > y",
        ),
        _case("residual, then bias", first | {"e": "residual"}, block + "Add d r > s; Add s B > y"),
        _case("the model's input is the residual", {"c": "residual"}, "c: x v > a; Add x a > y", (1, 8, 5, 7)),
        _case("two meet", {"c": "none", "e": "residual"}, both + "Add a d > y"),
        # onnxslim puts c behind e here
        _case("two meet the other way", {"c": "residual+relu", "e": "none"}, both + "Add d a > s; Relu s > y"),
        _case("the earlier has an activation", first | {"e": "residual"}, both + "Relu a > r; Add d r > y"),
        _case("the later has an activation", {"c": "residual", "e": "relu"}, both + "Relu d > s; Add a s > y"),
        _case("residual made behind it", {"c": "residual"}, "c: x w > a; Tanh z > t; Add a t > y", z=wide),
        _case("residual made of a later one", {"c": "residual", "e": "none"}, both + "Tanh d > t; Add t a > y"),
        _case(
            "chain of residuals",
            {"c": "none", "e": "residual", "f": "residual"},
            both + "Add a d > s; f: s v > g; Add s g > y",
        ),
        _case(
            "addition of another shape",
            {"c": "none"},
            "c: x w > a; GlobalAveragePool z > p; Add a p > y",
            z=(1, 8, 3, 3),
        ),
        _case("addition that widens", {"c": "none"}, "c: x w > a; Add a z > y", z=(3, 8, 9, 10)),
        _case("added to itself", {"c": "none"}, "c: x w > a; Add a a > y"),
        _case("added to its own relu", {"c": "none"}, "c: x w > a; Relu a > r; Add a r > y"),
        _case("added after the activation", {"c": "relu"}, "c: x w > a; Relu a > r; Add r z > y", z=wide),
    ]


def _shared_values() -> list[LayerCase]:
    excite = "c: x w > a; Relu a > r; GlobalAveragePool r > p; s: p v b > g; Sigmoid g > h; Mul r h > y"
    concat = [*_nodes("c: x w > a; e: z w > d"), _op("Concat", "a d", "y", axis=3)]
    return [
        _case("used twice", {"c": "none"}, "c: x w > a; Relu a > r; Tanh a > t; Mul r t > y"),
        _case("also an output", {"c": "none"}, "c: x w > a; Relu a > y", outputs="y a"),
        _case("its sum is also an output", {"c": "bias"}, "c: x w > a; Add a B > s; Relu s > y", outputs="s y"),
        _case("hard-swish and another user", {"c": "none"}, "c: x w > a; HardSwish a > h; Tanh a > t; Add h t > y"),
        _case("gate of something else", {"c": "none"}, "c: x w > a; Sigmoid z > s; Mul a s > y", z=(1, 8, 9, 10)),
        _case("squeeze and excite", {"c": "relu", "s": "bias"}, excite),
        _case("one filter for two", {"c": "none", "e": "none"}, concat, z=(1, 4, 9, 12)),
    ]


def _shapes() -> list[LayerCase]:
    def one(name: str, shape: Sequence[int], f: Array, **attributes: object) -> LayerCase:
        return _case(name, {"c": "none"}, [conv("c", "x", "f", "y", **attributes)], shape, f=f)

    line = [conv("c", "x", "f b", "a", pads=[1, 1]), *_nodes("Relu a > r"), conv("e", "r", "g", "d")]
    lines = {"f": _pruned(8, 4, 3), "g": _pruned(8, 8, 1, seed=4)}
    jumps = {"strides": [3, 2], "dilations": [2, 3], "pads": [2, 1, 0, 3]}
    return [
        one("batch of 3", (3, 4, 7, 5), _pruned(6, 4, 3, 3), pads=[1] * 4),
        one("asymmetric padding", (1, 4, 7, 8), _pruned(5, 4, 3, 2), pads=[0, 1, 2, 3]),
        one("same upper", (1, 3, 10, 11), _pruned(5, 3, 3, 4), auto_pad="SAME_UPPER", strides=[2, 3]),
        one("same lower", (1, 3, 10, 11), _pruned(5, 3, 3, 4), auto_pad="SAME_LOWER", strides=[2, 3]),
        one("valid", (1, 3, 10, 11), _pruned(5, 3, 3, 4), auto_pad="VALID"),
        one("stride and dilation", (2, 3, 19, 17), _pruned(7, 3, 3, 2), **jumps),
        one("grouped", (1, 6, 9, 9), _pruned(9, 2, 3, 3), group=3, pads=[1] * 4),
        one("depthwise", (1, 6, 9, 9), _pruned(6, 1, 3, 3, sparsity=0.4), group=6, pads=[1] * 4),
        one("depthwise, two a channel", (1, 6, 9, 9), _pruned(12, 1, 3, 3, sparsity=0.4), group=6, strides=[2, 2]),
        one("one-dimensional", (2, 5, 33), _pruned(7, 5, 4), strides=[2], pads=[2, 1], dilations=[2]),
        one("one output pixel", (1, 4, 3, 3), _pruned(16, 4, 3, 3)),
        one("one pixel in", (1, 16, 1, 1), _pruned(10, 16, 1, 1)),
        one("one of everything", (1, 1, 1, 1), weights(1, 1, 1, 1)),
        one("kernel larger than the input", (1, 2, 3, 2), _pruned(4, 2, 5, 5), pads=[2] * 4),
        one("strided pointwise", (1, 8, 9, 9), _pruned(5, 8, 1, 1), strides=[2, 2]),
        one("pointwise of a batch", (2, 12, 9, 11), _pruned(10, 12, 1, 1)),
        one("one row of a kernel", (1, 4, 6, 30), _pruned(3, 4, 1, 9), pads=[0, 4, 0, 4]),
        _case("line block", {"c": "bias+relu", "e": "residual"}, [*line, *_nodes("Add d r > y")], (1, 4, 21), **lines),
    ]


def _odd_filters() -> list[LayerCase]:
    rows = CONSTANTS["w"].copy()
    rows[[0, 3, 7]] = 0
    single = np.zeros_like(rows)
    single[5, 2, 0, 1] = 1.5
    beside = [*_nodes("c: x w b > a; Relu a > r; Tanh x > t"), _op("Concat", "r t", "y", axis=1)]
    return [
        _case("full density", {"c": "none"}, "c: x w > y", w=weights(8, 4, 3, 3)),
        _case("empty rows", {"c": "relu"}, "c: x w > a; Relu a > y", w=rows),
        _case("a single nonzero", {"c": "none"}, "c: x w > y", w=single),
        _case("nothing but zeros", {"c": "bias+relu"}, beside, w=np.zeros_like(rows)),
    ]


def _not_direct() -> list[LayerCase]:
    up = helper.make_node("ConvTranspose", ["x", "f"], ["y"], name="up", strides=[2, 2])
    double = {"types": (TensorProto.DOUBLE,) * 2, "w": CONSTANTS["w"].astype(np.float64)}
    line = {"types": (TensorProto.DOUBLE,) * 2, "f": _pruned(8, 4, 3).astype(np.float64)}
    return [
        _case("transposed", {"up": None}, [up], f=_pruned(4, 6, 2, 2)),
        _case("three-dimensional", {"c": None}, "c: x f > y", (1, 2, 5, 6, 7), f=_pruned(4, 2, 3, 3, 3)),
        _case("float64", {"c": None}, "c: x w > a; Relu a > y", **double),
        _case("float64, one-dimensional", {"c": None}, "c: x f > y", (1, 4, 12), **line),
        _case("computed filter", {"c": "none"}, "Sigmoid z > f; free: x f > a; c: a v > y", z=(8, 4, 3, 3)),
    ]


def _whole_nets() -> list[LayerCase]:
    pool = helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2])
    tail = "e: p v > d; Relu d > q; GlobalAveragePool q > g; Flatten g > h; Gemm h m n > y"
    cast = _op("Cast", "x", "t", to=TensorProto.FLOAT)
    integers = (TensorProto.INT32, TensorProto.FLOAT)
    return [
        _case("integer input", {"c": "relu"}, [cast, *_nodes("c: t w > a; Relu a > y")], types=integers),
        _case("classifier", {"c": "relu", "e": "relu"}, [*_nodes("c: x w > a; Relu a > r"), pool, *_nodes(tail)]),
        _case(
            "two inputs and outputs",
            {"c": "relu", "e": "none"},
            "c: x w > a; Relu a > y; e: z v > k",
            z=(1, 8, 4, 4),
            outputs="k y",
        ),
        _case("no convolution", {}, "Gemm x m n > y", (3, 8)),
        _case("an input is an output", {}, "Relu x > y; Identity x > same", outputs="same y"),
        _case("nothing is computed", {}, "Identity x > y"),
        _case("an unused input", {"c": "none"}, "c: x w > y", z=(2, 3)),
    ]
