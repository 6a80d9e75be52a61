"""Branches of a network: concats that cost no kernel, and convolutions of one input as one kernel."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import tvm
from onnx import NodeProto, helper

from tests.network.onnx_models import Array, conv, model, random_inputs, tensor, weights
from tests.network.running import build, run_poisoned
from tests.tuning.making import record
from tvm_sparse.network import siblings
from tvm_sparse.network.match import ConvLayer, match_layers
from tvm_sparse.network.onnx_import import import_onnx
from tvm_sparse.network.siblings import merge_siblings
from tvm_sparse.network.tunable import tunable_layers
from tvm_sparse.oracle import relative_error
from tvm_sparse.targets import make_target
from tvm_sparse.tuning.lookup import KnownKernels
from tvm_sparse.tvm_support import cuda_build, cuda_target

CPU, GPU = make_target("llvm", threads=2), cuda_target("sm_90")
C, SIZE = 8, 12


def pruned(k: int, c: int, r: int, seed: int) -> Array:
    weight = weights(k, c, r, r, seed=seed) / np.float32(np.sqrt(c) * r)
    return weight * (np.random.default_rng(seed).random(weight.shape) < 0.3).astype(np.float32)


def op(kind: str, inputs: str, y: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs.split(), [y], **attributes)


CONSTANTS = {
    **{f"w{i}": pruned(4 + i, C, 1, i) for i in range(4)},
    **{f"v{i}": pruned(6, 4 + i, 3, 10 + i) for i in range(4)},
    **{f"b{i}": weights(4 + i, seed=20 + i) for i in range(4)},
    "e": pruned(5, 9, 1, 30),
    "f": pruned(3, 9, 1, 31),
    "k": pruned(4, C, 3, 32),
}


def net(nodes: Sequence[NodeProto], outputs: Sequence[str] = ("y",), n: int = 2) -> onnx.ModelProto:
    return model(nodes, CONSTANTS, [tensor("x", (n, C, SIZE, SIZE))], outputs)


def one_by_one(i: int, y: str, x: str = "x", activation: str = "Relu") -> list[NodeProto]:
    return [conv(f"m/c{i}", x, f"w{i} b{i}", f"{y}.c"), op(activation, f"{y}.c", y)]


def three_by_three(i: int, x: str, y: str) -> list[NodeProto]:
    return [conv(f"m/d{i}", x, f"v{i}", y, pads=[1] * 4)]


POOL = op("MaxPool", "x", "p", kernel_shape=[3, 3], pads=[1] * 4)
INCEPTION = [
    *one_by_one(0, "r0"),
    POOL,
    *one_by_one(1, "a"),
    *one_by_one(2, "r2"),
    *three_by_three(0, "r0", "b"),
    *three_by_three(2, "r2", "c"),
    *one_by_one(3, "d", "p"),
    op("Concat", "a b c d", "y", axis=1),
]
PAIR = [*one_by_one(0, "a"), *one_by_one(1, "b")]
#: Networks, and how many of their concats are left.
CONCATS = {
    "inception": (INCEPTION, 0),
    "negative axis": ([*PAIR, op("Concat", "b a", "y", axis=-3)], 0),
    "of a concat": ([*PAIR, op("Concat", "a b", "t", axis=1), op("Concat", "t x", "y", axis=1)], 1),
    "one after the other": (
        [*PAIR, op("Concat", "a b", "t", axis=1), conv("e", "t", "e", "u"), conv("f", "t", "f", "v"),
         op("Concat", "v u", "y", axis=1)], 0,
    ),
    "along the rows": ([*one_by_one(0, "a"), conv("e", "x", "w0", "b"), op("Concat", "a b", "y", axis=2)], 1),
    "part used elsewhere": ([*PAIR, op("Concat", "a b", "t", axis=1), op("Relu", "a", "z")], 1),
    "part that is an output": ([*PAIR, op("Concat", "a b", "t", axis=1)], 1),
    "twice the same": ([*one_by_one(0, "a"), op("Concat", "a a", "y", axis=1)], 1),
    "part that no kernel of ours computes": ([*PAIR, POOL, op("Concat", "a b p", "y", axis=1)], 1),
    "part with a residual": (
        [*one_by_one(0, "a"), conv("m/g", "x", "w0", "g"), op("Add", "g a", "s"), *one_by_one(1, "b"),
         op("Concat", "s b", "y", axis=1)], 0,
    ),
}  # fmt: skip
OUTPUTS = {"part used elsewhere": ("t", "z"), "part that is an output": ("a", "t")}


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("merge", [False, True], ids=["apart", "merged"])
@pytest.mark.parametrize("name", CONCATS)
def test_outputs_and_what_is_left_of_the_concat(name, merge, n, monkeypatch):
    monkeypatch.setattr(siblings, "_pays", lambda *_: merge)
    nodes, left = CONCATS[name]
    imported = import_onnx(net(nodes, OUTPUTS.get(name, ("y",)), n))
    built = build(imported, "always")
    inputs = random_inputs(imported)
    assert imported.reference is not None
    for ours, theirs in zip(run_poisoned(built.executable, imported, inputs), imported.reference(inputs), strict=True):
        assert relative_error(ours, theirs) <= 1e-5
    assert len(re.findall(r"call +\w*concat", built.executable.as_text())) == left


def layers_of(nodes: Sequence[NodeProto], outputs: Sequence[str]) -> list[ConvLayer]:
    imported = import_onnx(net(nodes, outputs))
    return match_layers(imported.module["main"], imported.convolutions)


def test_the_first_convolutions_of_a_module_are_one_on_a_gpu():
    names = [layer.name for layer in merge_siblings(layers_of(INCEPTION, ("y",)), "always", GPU)]
    assert names == ["m/c0 + c1 + c2", "m/c3", "m/d0", "m/d2"]
    (layer,) = (layer for layer in tunable_layers([import_onnx(net(INCEPTION))], GPU, ["m/c1"]))
    assert layer.workload.k == 15 and layer.workload.epilogue.bias
    np.testing.assert_array_equal(layer.weight, np.concatenate([CONSTANTS[f"w{i}"] for i in range(3)]))


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        ([*one_by_one(0, "a"), *one_by_one(1, "b", activation="Sigmoid")], ("a", "b")),
        ([conv("c", "x", "w0", "a"), conv("d", "x", "k", "b")], ("a", "b")),
        ([conv("c", "x", "w0", "a"), conv("d", "x", "w1", "b", strides=[2, 2])], ("a", "b")),
        ([conv("c", "x", "w0", "a"), op("Relu", "x", "r"), conv("d", "r", "w1", "b")], ("a", "b")),
        ([*one_by_one(0, "a"), conv("d", "x", "w0", "b"), op("Add", "a b", "s"), op("Relu", "s", "t")], ("t",)),
    ],
    ids=["activation", "kernel", "stride", "input", "residual"],
)
def test_what_differs_is_not_merged(nodes, outputs):
    layers = layers_of(nodes, outputs)
    assert len(layers) > 1 and merge_siblings(layers, "always", GPU) == layers


def test_a_missing_bias_is_zero():
    (layer,) = merge_siblings(
        layers_of([conv("a", "x", "w0", "s"), conv("b", "x", "w1 b1", "t")], ("s", "t")), "always", GPU
    )
    biases = {"a": np.zeros(4, np.float32), "b": CONSTANTS["b1"]}
    np.testing.assert_array_equal(layer.bias, np.concatenate([biases[part.name] for part in layer.merged]))


@pytest.mark.parametrize(("together_us", "merged"), [(50.0, True), (90.0, False), (None, None)])
def test_what_was_measured_decides(together_us, merged):
    """With times for its parts only a GPU merges and a CPU does not; without any both do."""
    layers = layers_of(PAIR, ("a", "b"))
    (together,) = merge_siblings(layers, "always", GPU)
    times = [(layer, 40.0) for layer in layers] + [(together, together_us)] * (together_us is not None)
    known = KnownKernels(
        record(workload=layer.workload.flattened(), density=layer.density, time_us=time) for layer, time in times
    )
    for target in (CPU, GPU):
        assert len(merge_siblings(layers, "always", target)) == 1
        expected = target is GPU if merged is None else merged
        assert len(merge_siblings(layers, "always", target, known)) == (1 if expected else 2)


def test_a_module_is_captured_in_a_cuda_graph():
    """Tensors that are stored in parts, and several results of a kernel, are no hindrance."""
    imported = import_onnx(net([*INCEPTION[:-1], op("Concat", "a b c d", "t", axis=1), op("Relu", "t", "y")]))
    with (
        cuda_build("sm_90", target=GPU),
        tvm.transform.PassContext(config={"relax.backend.use_cuda_graph": True}),
    ):
        text = build(imported, "always", GPU).executable.as_text()
    assert "concat" not in text and len(re.findall(r"call +(direct_conv2d|max_pool2d)\w*", text)) == 5
    captured = re.split(r"^@(\w+):$", text, flags=re.MULTILINE)
    bodies = dict(zip(captured[1::2], captured[2::2], strict=True))
    # the first kernels read the input and the last one writes the output: those stay outside
    assert sum(body.count("direct_conv2d") for name, body in bodies.items() if name != "main") >= 3
