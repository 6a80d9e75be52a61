"""ONNX files: what comes out computes the same, keeps its names, and what cannot be imported is refused by name."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from onnx import helper

from tests.network.conformance_cases import ConformanceCase, conformance_cases, masked
from tests.network.onnx_models import (
    assert_matches_reference,
    batch_norm,
    conv,
    model,
    one_conv,
    run,
    tensor,
    weights,
)
from tvm_sparse.network.imported import bindings_of, operator
from tvm_sparse.network.onnx_import import import_onnx

CASES = list(conformance_cases())


def operators(module: object) -> list[str]:
    return [name for _, value in bindings_of(module["main"]) if (name := operator(value)) is not None]  # type: ignore[index]


# --- conformance -------------------------------------------------------------------------------------------------


def test_all_conformance_cases_are_found() -> None:
    assert len(CASES) == 47
    assert len({case.name for case in CASES}) == 47


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_conformance_case_imports(case: ConformanceCase, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        imported = import_onnx(case.model)
    assert not caplog.records
    (info,) = imported.convolutions
    assert info.name == case.model.graph.node[0].name or info.name == case.model.graph.node[0].input[1]
    assert [spec.shape for spec in imported.outputs] == [output.shape for output in case.outputs]
    assert "relax.nn.conv1d" not in operators(imported.module)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_conformance_case_computes_the_same(case: ConformanceCase) -> None:
    for variant in (case, masked(case, 0.9)):
        (ours,) = run(import_onnx(variant.model), variant.inputs)
        np.testing.assert_allclose(ours, variant.outputs[0], rtol=1e-4, atol=1e-5)


# --- what is folded, rewritten and named -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "shape", "kernel", "stride", "dilation"),
    [
        (mode, (1, 3, h, w), kernel, stride, (1, 1))
        for mode in ("SAME_UPPER", "SAME_LOWER", "VALID")
        for h, w, kernel, stride in ((8, 8, (3, 3), (2, 2)), (9, 7, (4, 2), (3, 1)), (5, 5, (1, 1), (2, 2)))
    ]
    + [("VALID", (1, 3, 9, 7), (4, 2), (3, 1), (1, 2))],  # onnxruntime refuses SAME with dilation
)
def test_auto_pad_becomes_explicit(
    mode: str, shape: tuple[int, ...], kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> None:
    weight = weights(4, 3, *kernel)
    imported = import_onnx(one_conv(shape, weight, auto_pad=mode, strides=stride, dilations=dilation))
    assert operators(imported.module) == ["relax.nn.conv2d"]
    assert_matches_reference(imported)


@pytest.mark.parametrize(
    "attributes",
    [
        {"output_shape": [10, 8], "strides": [3, 2]},
        {"output_shape": [8, 6], "strides": [3, 2]},
        {"output_shape": [8, 6], "strides": [3, 2], "auto_pad": "SAME_UPPER"},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"output_padding": [1, 1], "strides": [2, 2], "pads": [1, 0, 0, 1]},
    ],
    ids=str,
)
def test_transposed_convolution_padding(attributes: dict[str, object]) -> None:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="up", **attributes)
    imported = import_onnx(model([node], {"w": weights(3, 2, 3, 3)}, [tensor("x", (1, 3, 3, 3))]))
    assert [info.name for info in imported.convolutions] == ["up"]
    assert_matches_reference(imported)


def test_batch_norm_scale_shift_and_padding_are_folded() -> None:
    norm, constants = batch_norm("c", "n", 4)
    nodes = [
        helper.make_node("Pad", ["x", "pads"], ["p"]),
        conv("first", "p", "w b", "c", strides=[2, 2], pads=[0, 1, 0, 0]),
        norm,
        helper.make_node("Mul", ["n", "scale"], ["m"]),
        helper.make_node("Add", ["m", "shift"], ["s"]),
        helper.make_node("Clip", ["s", "zero", "six"], ["y"]),
    ]
    constants |= {
        "pads": np.array([0, 0, 1, 0, 0, 0, 2, 1], np.int64),
        "w": weights(4, 3, 3, 3),
        "b": weights(4),
        "scale": weights(1, 4, 1, 1),
        "shift": weights(4, 1, 1),
        "zero": np.array(0, np.float32),
        "six": np.array(6, np.float32),
    }
    imported = import_onnx(model(nodes, constants))
    assert operators(imported.module) == ["relax.nn.conv2d", "relax.add", "relax.clip"]
    assert [info.name for info in imported.convolutions] == ["first"]
    assert_matches_reference(imported)


def test_batch_norm_behind_a_shared_convolution_is_not_folded_into_it() -> None:
    norm, constants = batch_norm("c", "n", 4)
    nodes = [conv("first", "x", "w", "c"), norm, helper.make_node("Add", ["c", "n"], ["y"])]
    imported = import_onnx(model(nodes, constants | {"w": weights(4, 3, 3, 3)}))
    assert operators(imported.module).count("relax.nn.conv2d") == 1
    assert_matches_reference(imported)


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        (["Relu c y"], ["relax.nn.relu"]),
        (["Sigmoid c g", "Mul c g y"], ["relax.nn.silu"]),
        (["HardSwish c y"], ["relax.add", "relax.clip", "relax.divide", "relax.multiply"]),
        (
            ["Add c three a", "Clip a zero six r", "Mul c r m", "Div m six y"],
            ["relax.add", "relax.clip", "relax.divide", "relax.multiply"],
        ),
        (["Clip c zero none r", "Clip r none six y"], ["relax.clip"]),
        (["Clip c zero none y"], ["relax.nn.relu"]),
    ],
    ids=lambda value: "-".join(entry.split()[0] for entry in value),
)
def test_activations_have_one_form(nodes: list[str], expected: list[str]) -> None:
    protos = [conv("first", "x", "w", "c")]
    for entry in nodes:
        op, *names = entry.split()
        names = ["" if name == "none" else name for name in names]
        protos.append(helper.make_node(op, names[:-1], names[-1:]))
    scalars = {name: np.array(value, np.float32) for name, value in (("zero", 0), ("three", 3), ("six", 6))}
    imported = import_onnx(model(protos, {"w": weights(4, 3, 3, 3), **scalars}))
    assert operators(imported.module) == ["relax.nn.conv2d", *expected]
    assert_matches_reference(imported)


def test_one_dimensional_network_stays_in_four_dimensions() -> None:
    norm, constants = batch_norm("b", "n", 6)
    nodes = [
        conv("one", "x", "w1 b1", "a", pads=[1, 1]),
        helper.make_node("Relu", ["a"], ["r"]),
        conv("two", "r", "w2", "b", pads=[2, 2], dilations=[2]),
        norm,
        helper.make_node("Add", ["n", "a"], ["s"]),
        helper.make_node("Relu", ["s"], ["y"]),
    ]
    constants |= {"w1": weights(6, 3, 3), "b1": weights(6), "w2": weights(6, 3, 3)}
    nodes[2].attribute.append(helper.make_attribute("group", 2))
    imported = import_onnx(model(nodes, constants, [tensor("x", (2, 3, 10))]))
    names = operators(imported.module)
    assert names.count("relax.nn.conv2d") == 2
    assert (names.count("relax.expand_dims"), names.count("relax.squeeze")) == (1, 1)
    assert [(info.name, info.filter_shape) for info in imported.convolutions] == [
        ("one", (6, 3, 1, 3)),
        ("two", (6, 3, 1, 3)),
    ]
    assert_matches_reference(imported)


def test_names_follow_nodes_through_fusion_and_reordering() -> None:
    norm_a, constants_a = batch_norm("a", "na", 4)
    norm_b, constants_b = batch_norm("b", "nb", 4)
    nodes = [
        conv("left", "x", "wa", "a"),
        conv("", "x", "wb", "b"),
        norm_b,
        norm_a,
        conv("right", "na", "wc", "c", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "nb"], ["y"]),
    ]
    filters = {"wa": weights(4, 3, 3, 3, seed=1), "wb": weights(4, 3, 3, 3, seed=2), "wc": weights(4, 4, 3, 3, seed=3)}
    imported = import_onnx(model(nodes, {**constants_a, **constants_b, **filters}))
    by_name = dict(zip((info.name for info in imported.convolutions), _filters(imported.module), strict=True))
    assert set(by_name) == {"left", "wb", "right"}
    for name, key in (("left", "wa"), ("wb", "wb"), ("right", "wc")):
        ours, original = by_name[name].reshape(4, -1), filters[key].reshape(4, -1)
        cosine = (ours * original).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(original, axis=1)
        np.testing.assert_allclose(np.abs(cosine), 1, rtol=1e-5)
    assert_matches_reference(imported)


def test_equal_node_names_are_told_apart() -> None:
    nodes = [conv("same", "x", "w", "a", pads=[1, 1, 1, 1]), conv("same", "a", "v", "y")]
    imported = import_onnx(model(nodes, {"w": weights(3, 3, 3, 3), "v": weights(3, 3, 3, 3, seed=1)}))
    assert [info.name for info in imported.convolutions] == ["same", "same (y)"]


def _filters(module: object) -> list[np.ndarray]:
    from tvm_sparse.network.imported import constant_filters

    return constant_filters(module["main"])  # type: ignore[index]


# --- shapes ------------------------------------------------------------------------------------------------------


def test_batch_and_shapes_pin_what_is_open() -> None:
    open_model = one_conv(("n", 3, "h", "w"))
    assert import_onnx(open_model, shapes={"x": (2, 3, 9, 7)}).inputs[0].shape == (2, 3, 9, 7)
    assert import_onnx(one_conv(("n", 3, 8, 8)), batch=5).outputs[0].shape == (5, 4, 6, 6)
    assert import_onnx(one_conv(("?", 3, "?", "?")), shapes={"x": (1, 3, 4, 6)}).inputs[0].shape == (1, 3, 4, 6)


def test_a_symbol_is_pinned_in_every_input() -> None:
    nodes = [helper.make_node("Add", ["x", "z"], ["s"]), conv("first", "s", "w", "y")]
    two = model(nodes, {"w": weights(4, 3, 3, 3)}, [tensor(name, ("n", 3, "h", 8)) for name in "xz"])
    imported = import_onnx(two, shapes={"x": (2, 3, 6, 8)})
    assert [(spec.name, spec.shape) for spec in imported.inputs] == [("x", (2, 3, 6, 8)), ("z", (2, 3, 6, 8))]
    assert_matches_reference(imported)


def test_a_batch_leaves_fixed_inputs_alone() -> None:
    nodes = [helper.make_node("Mul", ["x", "gain"], ["s"]), conv("first", "s", "w", "y")]
    inputs = [tensor("gain", (1,)), tensor("x", ("n", 3, 8, 8))]
    imported = import_onnx(model(nodes, {"w": weights(4, 3, 3, 3)}, inputs), batch=3)
    assert [spec.shape for spec in imported.inputs] == [(1,), (3, 3, 8, 8)]


def test_several_outputs_and_an_unused_input_keep_names_and_order() -> None:
    nodes = [conv("first", "x", "w", "c"), helper.make_node("Relu", ["c"], ["r"])]
    inputs = [tensor("unused", (1, 2)), tensor("x", (1, 3, 8, 8))]
    imported = import_onnx(model(nodes, {"w": weights(4, 3, 3, 3)}, inputs, outputs=("r", "c")))
    assert [spec.name for spec in imported.inputs] == ["unused", "x"]
    assert [spec.name for spec in imported.outputs] == ["r", "c"]
    assert_matches_reference(imported)


def test_a_failing_simplifier_is_survived(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    import onnxslim

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(onnxslim, "slim", broken)
    with caplog.at_level(logging.WARNING):
        imported = import_onnx(one_conv(auto_pad="SAME_UPPER", strides=[2, 2]))
    assert "out of order" in caplog.text
    assert_matches_reference(imported)
