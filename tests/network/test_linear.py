"""Pruned linear layers run as convolutions of one pixel; what stays dense is a product of matrices again."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, helper

from tests.network.onnx_models import Array, conv, model, random_inputs, tensor, weights
from tests.network.running import build, run_poisoned
from tvm_sparse.network.imported import bindings_of, operator
from tvm_sparse.network.match import match_layers
from tvm_sparse.network.onnx_import import import_onnx
from tvm_sparse.oracle import relative_error


def op(kind: str, inputs: str, y: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs.split(), [y], name=f"the {kind} of {y}", **attributes)


def pruned(*shape: int, density: float = 0.15) -> Array:
    rng = np.random.default_rng(sum(shape))
    return weights(*shape) * (rng.random(shape) < density).astype(np.float32)


CONSTANTS = {
    "w": pruned(24, 48),
    "wt": pruned(48, 24),
    "v": pruned(24, 10),
    "full": weights(24, 48),
    "b": weights(24),
    "b1": weights(1, 24),
    "scalar": np.array(0.5, np.float32),
    "k": pruned(6, 12, 3, 3),
    "one": pruned(5, 24, 1, 1),
    "rows": weights(2, 24),
}
GEMM = op("Gemm", "f w b", "t", transB=1)
FLAT = op("Flatten", "x", "f")
#: Networks on x (2, 3, 4, 4), and the layers that are found: by name the epilogue.
NETS: dict[str, tuple[list[NodeProto], dict[str, str]]] = {
    "gemm": ([FLAT, GEMM, op("Relu", "t", "y")], {"the Gemm of t": "bias+relu"}),
    "without bias": ([FLAT, op("MatMul", "f wt", "y")], {"the MatMul of y": "none"}),
    "bias of two dimensions": (
        [FLAT, op("MatMul", "f wt", "t"), op("Add", "b1 t", "y")], {"the MatMul of t": "bias"},
    ),
    "two in a row": (
        [FLAT, GEMM, op("Relu", "t", "u"), op("MatMul", "u v", "y")],
        {"the Gemm of t": "bias+relu", "the MatMul of y": "none"},
    ),
    "scalar added": ([FLAT, op("MatMul", "f wt", "t"), op("Add", "t scalar", "y")], {"the MatMul of t": "bias"}),
    "rows added": ([FLAT, op("MatMul", "f wt", "t"), op("Add", "t rows", "y")], {"the MatMul of t": "residual"}),
    "dense": ([FLAT, op("Gemm", "f full b", "y", transB=1)], {}),
    "weight on the left": ([op("Transpose", "x", "s", perm=[3, 2, 1, 0]), op("Reshape", "s shape", "g"),
                            op("MatMul", "w g", "y")], {}),
    "sum of two": (
        [FLAT, GEMM, op("MatMul", "f wt", "u"), op("Add", "t u", "s"), op("Relu", "s", "y")],
        {"the Gemm of t": "bias", "the MatMul of u": "residual+relu"},
    ),
    "activation of another kind": ([FLAT, GEMM, op("Sigmoid", "t", "y")], {"the Gemm of t": "bias"}),
    "a convolution of one pixel": (
        [op("GlobalAveragePool", "x", "a"), conv("c", "a", "tiny", "t"), op("Relu", "t", "y")], {"c": "relu"},
    ),
}  # fmt: skip
CONSTANTS |= {"shape": np.array([48, 2], np.int64), "tiny": pruned(7, 3, 1, 1, density=0.6)}


def net(name: str) -> onnx.ModelProto:
    nodes, _ = NETS[name]
    used = {each for node in nodes for each in node.input}
    constants = {key: value for key, value in CONSTANTS.items() if key in used}
    return model(nodes, constants, [tensor("x", (2, 3, 4, 4))])


@pytest.mark.parametrize("mode", ["always", "auto", "never"])
@pytest.mark.parametrize("name", NETS)
def test_outputs(name, mode):
    imported = import_onnx(net(name))
    built = build(imported, mode)
    inputs = random_inputs(imported)
    assert imported.reference is not None
    (ours,), (theirs,) = run_poisoned(built.executable, imported, inputs), imported.reference(inputs)
    assert ours.shape == theirs.shape and relative_error(ours, theirs) <= 1e-5
    assert {layer.name for layer in built.layers} == set(NETS[name][1])
    if mode == "always" and NETS[name][1] and NETS[name][0][-1].op_type != "Sigmoid":
        assert not re.search(r"call +\w*(reshape\d|matmul)", built.executable.as_text()), "a copy, or a dense product"
    if mode == "never":
        text = built.executable.as_text()
        assert not re.search(r"call +(direct_)?conv2d", text) and re.search(r"call +\w*matmul", text)


@pytest.mark.parametrize("name", NETS)
def test_layers_and_epilogues(name):
    imported = import_onnx(net(name))
    layers = match_layers(imported.module["main"], imported.convolutions)
    assert {layer.name: str(layer.workload.epilogue) for layer in layers} == NETS[name][1]


def test_nothing_stands_between_layers_in_a_row():
    main = import_onnx(net("two in a row")).module["main"]
    operators = [operator(value) for _, value in bindings_of(main)]
    first, last = operators.index("relax.nn.conv2d"), len(operators) - operators[::-1].index("relax.nn.conv2d")
    assert "relax.reshape" not in operators[first:last] and operators.count("relax.nn.conv2d") == 2


def test_layers_of_torch_have_their_names():
    torch = pytest.importorskip("torch")
    from tvm_sparse.network.torch_import import import_torch

    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 20), torch.nn.ReLU(), torch.nn.Linear(20, 48))
    net.extra = torch.nn.Linear(48, 5, bias=False)
    with torch.no_grad():
        for layer in (net[1], net.extra):
            layer.weight *= torch.rand(layer.weight.shape) < 0.2
    imported = import_torch(net.eval(), [torch.zeros(2, 3, 4, 4)])
    assert [(info.name, info.filter_shape) for info in imported.convolutions] == [
        ("1", (20, 48, 1, 1)),
        ("extra", (5, 48, 1, 1)),
    ]
