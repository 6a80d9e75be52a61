"""Convolutions with a stride that run without one, on what the layer in front stores by phases."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import NodeProto, helper

from tests.cases import TOLERANCE
from tests.cuda_on_cpu import outputs_of
from tests.network.onnx_models import Array, conv, model, random_inputs, tensor, weights
from tests.network.running import build, run_poisoned, silent
from tests.tuning.making import record
from tvm_sparse.network import phases, plan
from tvm_sparse.network.batches import batch_sizes, lower_batches
from tvm_sparse.network.build import lower_network
from tvm_sparse.network.imported import bindings_of, is_constant, operator, static_shape
from tvm_sparse.network.match import ConvLayer
from tvm_sparse.network.onnx_import import import_onnx
from tvm_sparse.network.phases import store_by_phases, without_stride
from tvm_sparse.network.plan import planned_layers
from tvm_sparse.network.precision import stored_in
from tvm_sparse.network.tunable import tunable_layers
from tvm_sparse.oracle import conv2d, relative_error
from tvm_sparse.targets import make_target
from tvm_sparse.tuning.lookup import KnownKernels
from tvm_sparse.tvm_support import cuda_target
from tvm_sparse.workload import ELEMENT_BYTES, ConvWorkload

CPU, GPU = make_target("llvm", threads=2), cuda_target("sm_90")
RESNET = ConvWorkload(1, 128, 56, 56, 128, 3, 3, (2, 2), (1, 1, 1, 1))
SAME = [1] * 4
#: Bytes of shared memory of a block.
MOST_SHARED = 227 * 1024


def by_phases(x: Array, stride: tuple[int, int]) -> Array:
    """(n, c·sh·sw, h/sh, w/sw) of (n, c, h, w)."""
    n, c, h, w = x.shape
    down, across = stride
    apart = x.reshape(n, c, h // down, down, w // across, across)
    return apart.transpose(0, 1, 3, 5, 2, 4).reshape(n, c * down * across, h // down, w // across)


padding = st.integers(0, 4)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    stride=st.sampled_from([(2, 2), (3, 3), (1, 2), (2, 1), (3, 2), (4, 4)]),
    kernel=st.tuples(st.integers(1, 7), st.integers(2, 7)),
    padding=st.tuples(padding, padding, padding, padding),
    steps=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_what_is_left_is_the_same_convolution(stride, kernel, padding, steps):
    (r, s), (top, left, bottom, right) = kernel, padding
    h, w = (count * step for count, step in zip(steps, stride, strict=True))
    h += -(-max(0, r - h - top - bottom) // stride[0]) * stride[0]
    w += -(-max(0, s - w - left - right) // stride[1]) * stride[1]
    workload = ConvWorkload(2, 3, h, w, 4, r, s, stride, padding)
    weight = weights(*workload.filter_shape) * (weights(*workload.filter_shape, seed=1) > 0)
    plain, phases = without_stride(workload, weight)
    assert plain.stride == (1, 1) and (plain.p, plain.q) == (workload.p, workload.q)
    assert phases.shape == plain.filter_shape and phases.dtype == weight.dtype
    assert np.array_equal(np.sort(phases[phases != 0]), np.sort(weight[weight != 0]))
    x = weights(2, 3, h, w, seed=2)
    ours = conv2d(by_phases(x, stride), phases, padding=plain.padding)
    theirs = conv2d(x, weight, stride=stride, padding=padding)
    assert ours.shape == theirs.shape and np.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_what_is_left_of_a_layer_of_resnet():
    plain, _ = without_stride(RESNET, np.zeros(RESNET.filter_shape, np.float16))
    assert plain == ConvWorkload(1, 512, 28, 28, 128, 2, 2, (1, 1), (1, 1, 0, 0))


@pytest.mark.parametrize(
    "changes",
    [
        {"stride": (1, 1)},
        {"r": 1, "s": 1},
        {"dilation": (1, 2)},
        {"groups": 2},
        {"h": 57},
        {"w": 57},
    ],
)
def test_what_has_no_phases(changes):
    workload = replace(RESNET, **changes)
    assert without_stride(workload, np.zeros(workload.filter_shape, np.float32)) is None


def pruned(k: int, c: int, r: int, seed: int) -> Array:
    weight = weights(k, c, r, r, seed=seed) / np.float32(np.sqrt(c) * r / 2)
    return weight * (np.random.default_rng(seed).random(weight.shape) < 0.3).astype(np.float32)


C, SIZE = 8, 12
CONSTANTS = {
    "one": pruned(6, C, 1, 1),
    "bias": weights(6, seed=2),
    "two": pruned(10, 6, 3, 3),
    "again": pruned(6, 10, 3, 4),
    "last": pruned(5, 10, 1, 5),
    "back": pruned(10, C, 1, 6),
    "grouped": pruned(10, 3, 3, 7),
    "pointwise": pruned(10, 6, 1, 8),
    "both": pruned(10, 12, 3, 9),
    "wide": pruned(4, 6, 5, 10),
    "first": pruned(10, C, 3, 11),
    "deep": pruned(C, 1, 3, 12),
}


def op(kind: str, inputs: str, y: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs.split(), [y], **attributes)


def net(nodes: Sequence[NodeProto], outputs: Sequence[str] = ("y",), n: int = 2, size: int = SIZE) -> onnx.ModelProto:
    return model(nodes, CONSTANTS, [tensor("x", (n, C, size, size))], outputs)


#: A pointwise layer, the strided one behind it, and one more, as in a bottleneck.
FRONT = [conv("front", "x", "one bias", "a"), op("Relu", "a", "b")]
STRIDED = conv("strided", "b", "two", "c", pads=SAME, strides=[2, 2])
BOTTLENECK = [*FRONT, STRIDED, op("Relu", "c", "d"), conv("last", "d", "last", "e"), op("Relu", "e", "y")]
RESIDUAL = [
    *FRONT,
    STRIDED,
    conv("beside", "x", "back", "s", strides=[2, 2]),
    op("Add", "s c", "t"),
    op("Relu", "t", "y"),
]
TAKEN = {
    "bottleneck": (BOTTLENECK, ["strided"]),
    "with a residual of its own": (RESIDUAL, ["strided"]),
    "one behind the other": (
        [*FRONT, STRIDED, conv("next", "c", "again", "y", pads=SAME, strides=[2, 2])],
        ["strided", "next"],
    ),
    "behind one with a residual": (
        [
            conv("left", "x", "one", "l"),
            conv("right", "x", "one bias", "r"),
            op("Add", "l r", "b"),
            STRIDED,
            op("Relu", "c", "y"),
        ],
        ["strided"],
    ),
    "into a concat": (
        [*FRONT, STRIDED, conv("beside", "x", "back", "s", strides=[2, 2]), op("Concat", "s c", "y", axis=1)],
        ["strided"],
    ),
    "a stride of three and of one": (
        [*FRONT, conv("strided", "b", "wide", "y", pads=[2, 1, 0, 3], strides=[1, 3])],
        ["strided"],
    ),
}
LEFT = {
    "without a stride": [*FRONT, conv("next", "b", "two", "y", pads=SAME)],
    "pointwise": [*FRONT, conv("next", "b", "pointwise", "y", strides=[2, 2])],
    "of groups": [*FRONT, conv("next", "b", "grouped", "y", pads=SAME, strides=[2, 2], group=2)],
    "dilated": [*FRONT, conv("next", "b", "two", "y", pads=SAME, strides=[2, 2], dilations=[2, 2])],
    "of a stride that leaves a rest": [*FRONT, conv("next", "b", "two", "y", pads=SAME, strides=[5, 2])],
    "of the network's input": [conv("next", "x", "first", "y", pads=SAME, strides=[2, 2])],
    "behind a pooling": [*FRONT, op("MaxPool", "b", "p", kernel_shape=[1, 1]), op("Sigmoid", "p", "q"),
                         conv("next", "q", "two", "y", pads=SAME, strides=[2, 2])],
    "of a tensor that others read": [*FRONT, STRIDED, op("Sigmoid", "b", "z"), op("Relu", "c", "y")],
    "of a tensor that is an output": [*FRONT, STRIDED, op("Relu", "c", "y")],
    "of a tensor that is a residual": [*FRONT, STRIDED, conv("more", "x", "one", "m"), op("Add", "m b", "y")],
    "of a concat": [*FRONT, conv("beside", "x", "one", "s"), op("Concat", "b s", "t", axis=1),
                    conv("next", "t", "both", "y", pads=SAME, strides=[2, 2])],
    "of a part of siblings": [*FRONT, conv("beside", "x", "one bias", "s"), op("Relu", "s", "z"), STRIDED,
                              op("Relu", "c", "y")],
}  # fmt: skip
OUTPUTS = {
    "of a tensor that others read": ("y", "z"),
    "of a tensor that is an output": ("b", "y"),
    "of a tensor that is a residual": ("y", "c"),
    "of a part of siblings": ("y", "z"),
}


def stored(layers: Sequence[ConvLayer]) -> dict[str, tuple[int, int]]:
    return {layer.name: layer.phases for layer in layers if layer.phases != (1, 1)}


def without(layers: Sequence[ConvLayer]) -> list[str]:
    return [layer.name for layer in layers if layer.strided is not None]


@pytest.mark.parametrize("name", TAKEN)
def test_layers_that_are_taken(name):
    nodes, expected = TAKEN[name]
    imported = import_onnx(net(nodes))
    layers = planned_layers(imported, "always", GPU)
    assert without(layers) == expected and len(stored(layers)) == len(expected)
    for layer in layers:
        if layer.strided is not None:
            assert layer.workload.stride == (1, 1) and layer.sparsity == 1 - layer.strided.density
            (front,) = (other for other in layers if other.root.same_as(layer.x))
            assert front.phases == layer.strided.workload.stride
    assert not without(planned_layers(imported, "always", CPU))
    assert not without(planned_layers(imported, "never", GPU)), "dense ones would multiply with more zeros"


@pytest.mark.parametrize("name", LEFT)
def test_layers_that_are_left_alone(name):
    size = 15 if name == "of a stride that leaves a rest" else SIZE
    layers = planned_layers(import_onnx(net(LEFT[name], OUTPUTS.get(name, ("y",)), size=size)), "always", GPU)
    assert layers and not without(layers) and not stored(layers)


def test_a_layer_that_no_template_runs_stores_no_phases():
    """A depthwise one, unless all are to be sparse."""
    nodes = [
        conv("front", "x", "deep", "b", pads=SAME, group=C),
        conv("strided", "b", "first", "y", pads=SAME, strides=[2, 2]),
    ]
    imported = import_onnx(net(nodes))
    assert without(planned_layers(imported, "always", GPU)) == ["strided"]
    assert not without(planned_layers(imported, "auto", GPU))


@pytest.mark.parametrize(
    ("with_us", "without_us", "taken"),
    [(9.0, 6.0, True), (6.0, 9.0, False), (6.0, 6.0, False), (6.0, None, False), (None, 6.0, True)],
)
def test_what_was_measured_decides(with_us, without_us, taken):
    imported = import_onnx(net(BOTTLENECK))
    (layer,) = (layer for layer in planned_layers(imported, "always", GPU) if layer.strided is not None)
    times = [(layer.strided, with_us), (layer, without_us)]
    known = KnownKernels(
        record(workload=each.workload, density=each.density, time_us=time) for each, time in times if time is not None
    )
    assert without(planned_layers(imported, "always", GPU, known)) == ["strided"] * taken


def test_untuned_layers_of_many_pixels_keep_their_stride(monkeypatch):
    imported = import_onnx(net(BOTTLENECK))
    monkeypatch.setattr(phases, "MOST_PIXELS", 6 * 6 - 1)
    assert not without(planned_layers(imported, "always", GPU))
    assert without(planned_layers(imported, "always", GPU, everywhere=True)) == ["strided"]


def test_layers_are_tuned_as_they_are_compiled():
    """Those with a stride in both forms."""
    imported = import_onnx(net(BOTTLENECK))
    ours = {layer.workload: layer for layer in tunable_layers([imported], GPU)}
    for everywhere in (False, True):
        for layer in planned_layers(imported, "auto", GPU, everywhere=everywhere):
            tuned = ours[layer.workload.flattened()]
            assert tuned.name == layer.name
            np.testing.assert_array_equal(tuned.weight, layer.weight)
    assert {layer.workload.stride for layer in ours.values() if layer.name == "strided"} == {(1, 1), (2, 2)}


@pytest.mark.parametrize("name", [*TAKEN, *LEFT])
def test_outputs_of_cpu_kernels(name, monkeypatch):
    """As on a GPU, but with templates whose code runs here as it is."""

    def as_on_a_gpu(function: Any, layers: Any, mode: str, target: Any, *others: Any) -> list[ConvLayer]:
        return store_by_phases(function, layers, mode, GPU, *others)

    monkeypatch.setattr(plan, "store_by_phases", as_on_a_gpu)
    nodes, expected = TAKEN.get(name) or (LEFT[name], [])
    imported = import_onnx(net(nodes, OUTPUTS.get(name, ("y",))))
    built = build(imported, "always")
    assert [layer.name for layer in built.layers if "phases" in layer.reason] == expected
    inputs = random_inputs(imported)
    for ours, theirs in zip(run_poisoned(built.executable, imported, inputs), imported.reference(inputs), strict=True):
        assert relative_error(ours, theirs) <= 1e-5


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
@pytest.mark.parametrize(("n", "dtype"), [(1, "float32"), (2, "float16"), (1, "bfloat16")])
def test_outputs_of_cuda_kernels(n, dtype, tmp_path):
    imported = import_onnx(net(BOTTLENECK, n=n))
    module, report = lower_network(stored_in(imported, dtype), GPU, "always", silent)
    line = next(line for line in report if line.name == "strided")
    dense = CONSTANTS["two"]
    assert line.workload.endswith("24x6x6 -> 10 2x2 padding 1,1,0,0") and line.reason == (
        "asked for; input stored by phases of the stride"
    )
    assert line.sparsity == 1 - np.count_nonzero(dense) / dense.size
    assert line.dense_bytes == dense.size * ELEMENT_BYTES[dtype]
    assert line.flop == 2 * n * np.count_nonzero(dense) * 6 * 6
    inputs = random_inputs(imported)
    ours, others = run_on_cpu(module, inputs, tmp_path)
    assert others == (0 if dtype == "float32" else 2), "from and to 16 bits"
    (theirs,) = imported.reference(inputs)
    assert relative_error(ours, theirs) <= TOLERANCE[dtype]


def run_on_cpu(module: tvm.IRModule, inputs: Mapping[str, Array], folder: Path) -> tuple[Array, int]:
    """The output of a lowered CUDA module, its convolutions through cuda_on_cpu; and how many other kernels it has."""
    main, others = module["main"], 0
    values = dict(zip(main.params, inputs.values(), strict=True))
    for number, (var, value) in enumerate(bindings_of(main)):
        if operator(value) != "relax.call_tir":
            values[var] = values[value.args[0]].reshape(static_shape(var))
            continue
        func, dtype = module[value.args[0]].with_attr("global_symbol", "main"), str(var.ty.dtype)
        given = [each.value.numpy() if is_constant(each) else values[each] for each in value.args[1].fields]
        if not value.args[0].name_hint.startswith("direct_conv2d"):  # from and to 16 bits
            values[var], others = given[0].reshape(static_shape(var)).astype(dtype), others + 1
            continue
        arrays = dict(zip([parameter.name for parameter in func.params[:-1]], given, strict=True))
        arrays["out"] = np.full(static_shape(var), np.nan, dtype)
        (folder / str(number)).mkdir()
        values[var] = outputs_of(func, GPU, arrays, MOST_SHARED, folder / str(number))["out"]
    return values[main.body.body], others


def test_every_batch_size_is_stored_by_phases():
    models = [import_onnx(net(BOTTLENECK, n=n)) for n in (1, 4)]
    _, report = lower_batches(models, batch_sizes(models, (1, 4)), GPU, "always", silent, None)
    assert [(line.batch, line.workload.split()[0]) for line in report if "phases" in line.reason] == [
        (1, "n1"),
        (4, "n4"),
    ]
