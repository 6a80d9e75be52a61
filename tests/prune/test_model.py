"""Pruning models in memory: which filters are found, what is shared, what is left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from tvm_sparse.errors import InputError, ModelError
from tvm_sparse.prune import PruneReport, prune_model


def normal(*shape: int, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), name=outputs.split()[0] + "_node", **attributes)


def constant(name: str, array: np.ndarray) -> NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))


def model_of(
    nodes: list[NodeProto],
    weights: dict[str, np.ndarray],
    *,
    x: tuple[int, ...] = (1, 4, 8, 8),
    outputs: tuple[str, ...] = ("y",),
    dtype: int = TensorProto.FLOAT,
    **options: Any,
) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", dtype, x)],
        [helper.make_tensor_value_info(name, dtype, [None] * len(x)) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    options = {"opset_imports": [helper.make_opsetid("", 18)], "ir_version": 8} | options
    model = helper.make_model(graph, **options)
    onnx.checker.check_model(model)
    return model


def weight(model: ModelProto, name: str) -> np.ndarray:
    return next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == name)


def zeros(array: np.ndarray) -> int:
    return array.size - np.count_nonzero(array)


def two_convs() -> ModelProto:
    return model_of(
        [node("Conv", "x a", "h"), node("Relu", "h", "r"), node("Conv", "r b bias", "y")],
        {"a": normal(6, 4, 3, 3), "b": 10 * normal(5, 6, 3, 3, seed=1), "bias": normal(5, seed=2)},
    )


def test_every_filter_gets_the_sparsity() -> None:
    model = two_convs()
    original = model.SerializeToString()
    pruned, report = prune_model(model, 0.9)
    assert model.SerializeToString() == original, "the argument is left alone"
    for name in ("a", "b"):
        before, after = weight(model, name), weight(pruned, name)
        assert zeros(after) == round(0.9 * after.size)
        assert np.array_equal(after[after != 0], before[after != 0])
        assert np.abs(before[after == 0]).max() <= np.abs(after[after != 0]).min()
    np.testing.assert_array_equal(weight(pruned, "bias"), weight(model, "bias"))
    assert [(conv.name, conv.weight, conv.shape) for conv in report.convs] == [
        ("h_node", "a", (6, 4, 3, 3)),
        ("y_node", "b", (5, 6, 3, 3)),
    ]
    assert all(conv.before == 0 and conv.after == pytest.approx(0.9, abs=0.01) for conv in report.pruned)
    assert not report.skipped
    assert (report.weights, report.zeros_before) == (6 * 36 + 5 * 54, 0)
    assert report.zeros_after == round(0.9 * 216) + round(0.9 * 270)
    assert report.after == report.zeros_after / report.weights


def test_global_ranks_the_network_together() -> None:
    model = two_convs()
    pruned, report = prune_model(model, 0.4, scope="global")
    assert zeros(weight(pruned, "a")) > 0.6 * 216 > 0.3 * 270 > zeros(weight(pruned, "b"))
    assert report.zeros_after == round(0.4 * (216 + 270))
    pruned, report = prune_model(model, 0.4, "vector:2", scope="global")
    vectors = 3 * 36 + 3 * 54
    gone = sum(
        np.count_nonzero(~w.reshape(w.shape[0], -1)[at : at + 2].any(axis=0))
        for w in (weight(pruned, "a"), weight(pruned, "b"))
        for at in range(0, w.shape[0], 2)
    )
    assert gone == round(0.4 * vectors)


def test_zeros_that_were_there_count() -> None:
    a = normal(6, 4, 3, 3)
    a[:3] = 0
    model = model_of([node("Conv", "x a", "y")], {"a": a})
    pruned, report = prune_model(model, 0.75)
    assert (report.before, report.after) == (0.5, 0.75)
    pruned, report = prune_model(model, 0.25)
    assert report.before == report.after == 0.5
    assert pruned.SerializeToString() == model.SerializeToString()


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_floats_keep_their_dtype(dtype: str) -> None:
    onnx_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    model = model_of([node("Conv", "x a", "y")], {"a": normal(6, 4, 3, 3, dtype=dtype)}, dtype=onnx_type)
    pruned, _ = prune_model(model, 0.5)
    after = weight(pruned, "a")
    assert after.dtype == dtype and zeros(after) == 108


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_weights_in_typed_fields_are_replaced(dtype: int) -> None:
    """Data in float_data, int32_data or double_data, where raw_data would leave two versions in one tensor."""
    array = normal(6, 4, 3, 3, dtype=helper.tensor_dtype_to_np_dtype(dtype).name)
    model = model_of([node("Conv", "x a", "y")], {"a": array}, dtype=dtype)
    model.graph.initializer[0].CopyFrom(helper.make_tensor("a", dtype, array.shape, array.ravel()))
    assert not model.graph.initializer[0].HasField("raw_data")
    pruned, _ = prune_model(model, 0.5)
    assert zeros(weight(pruned, "a")) == 108 and len(pruned.graph.initializer[0].float_data) == 0


@pytest.mark.parametrize(
    ("x", "shape"), [((1, 4, 20), (6, 4, 5)), ((1, 4, 5, 5, 5), (6, 4, 2, 3, 2)), ((1, 6, 8, 8), (6, 1, 3, 3))]
)
def test_1d_3d_and_depthwise_filters(x: tuple[int, ...], shape: tuple[int, ...]) -> None:
    model = model_of([node("Conv", "x a", "y", group=x[1] // shape[1])], {"a": normal(*shape)}, x=x)
    pruned, _ = prune_model(model, 0.5)
    assert zeros(weight(pruned, "a")) == weight(model, "a").size // 2


def test_filters_in_constants_and_behind_identities() -> None:
    nodes = [
        constant("c", normal(4, 4, 1, 1)),
        node("Identity", "c", "c1"),
        node("Identity", "a", "a1"),
        node("Identity", "a1", "a2"),
        node("Conv", "x c1", "h"),
        node("Conv", "h a2", "y"),
    ]
    pruned, report = prune_model(model_of(nodes, {"a": normal(4, 4, 3, 3)}), 0.5)
    assert zeros(weight(pruned, "a")) == 72
    assert zeros(numpy_helper.to_array(pruned.graph.node[0].attribute[0].t)) == 8
    assert len(report.pruned) == 2 and len(pruned.graph.node) == len(nodes)


def test_a_filter_shared_by_convolutions_is_pruned_once() -> None:
    model = model_of(
        [node("Identity", "a", "alias"), node("Conv", "x a", "h"), node("Conv", "h alias", "y")],
        {"a": normal(4, 4, 3, 3)},
    )
    pruned, report = prune_model(model, 0.5)
    assert [tensor.name for tensor in pruned.graph.initializer] == ["a"]
    assert (report.weights, report.zeros_after) == (144, 72)
    assert [conv.after for conv in report.convs] == [0.5, 0.5]


@pytest.mark.parametrize("as_constant", [False, True])
@pytest.mark.parametrize("reader", ["Add", "output", "behind an Identity", "skipped Conv"])
def test_a_filter_that_others_read_is_cloned(reader: str, as_constant: bool) -> None:
    """The other reader still sees the original, the convolutions the pruned copy."""
    a = normal(4, 4, 3, 3)
    nodes, outputs = [node("Conv", "x a", "h"), node("Conv", "h a", "y")], ["y", "other"]
    if reader == "Add":
        nodes.append(node("Add", "a a", "other"))
    elif reader == "output":
        outputs[1] = "a"
    elif reader == "behind an Identity":
        nodes += [node("Identity", "a", "alias"), node("Neg", "alias", "other")]
    else:
        nodes.append(node("Conv", "x a", "other"))
    if as_constant:
        nodes.insert(0, constant("a", a))
    model = model_of(nodes, {} if as_constant else {"a": a}, outputs=tuple(outputs))
    pruned, report = prune_model(model, 0.5, skip=["other_node"] if reader == "skipped Conv" else [])
    x = normal(1, 4, 8, 8, seed=5)
    before, after = (ReferenceEvaluator(each).run(None, {"x": x}) for each in (model, pruned))
    np.testing.assert_array_equal(before[1], after[1])
    assert not np.allclose(before[0], after[0])
    # The same network with the pruned filter written in by hand.
    flat = np.sort(np.abs(a).ravel())
    nodes = [node("Conv", "x b", "h"), node("Conv", "h b", "y")]
    by_hand = model_of(nodes, {"b": np.where(np.abs(a) > flat[71], a, 0)})
    np.testing.assert_array_equal(ReferenceEvaluator(by_hand).run(None, {"x": x})[0], after[0])
    assert report.weights == 144, "counted once"


def test_a_clone_gets_a_free_name_and_is_an_input_in_old_models() -> None:
    model = model_of(
        [node("Conv", "x a", "h"), node("Conv", "h a_pruned", "y"), node("Add", "a a", "other")],
        {"a": normal(4, 4, 3, 3), "a_pruned": normal(4, 4, 3, 3, seed=1)},
        outputs=("y", "other"),
        opset_imports=[helper.make_opsetid("", 8)],
    )
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    model.ir_version = 3
    onnx.checker.check_model(model)
    pruned, _ = prune_model(model, 0.5)
    assert [tensor.name for tensor in pruned.graph.initializer] == ["a", "a_pruned", "a_pruned_2"]
    assert list(pruned.graph.node[0].input) == ["x", "a_pruned_2"]
    np.testing.assert_array_equal(weight(pruned, "a"), weight(model, "a"))
    assert zeros(weight(pruned, "a_pruned")) == zeros(weight(pruned, "a_pruned_2")) == 72


def test_convolutions_in_subgraphs_and_functions() -> None:
    model = parser.parse_model(
        """
        <ir_version: 8, opset_import: ["": 18, "local": 1]>
        net (float[1, 1, 4, 4] x, bool which) => (float[1, 1, 4, 4] y)
        <float[1, 1, 1, 2] outer = {1, 2}>
        {
            z = If (which) <
                then_branch = left () => (float[1, 1, 4, 4] l) {
                    l = Conv <pads = [0, 0, 0, 1]> (x, outer)
                },
                else_branch = right () => (float[1, 1, 4, 4] r)
                <float[1, 1, 1, 2] inner = {4, 3}> {
                    r = Conv <pads = [0, 0, 0, 1]> (x, inner)
                }
            >
            y = local.twice (z, outer)
        }
        <domain: "local", opset_import: ["": 18]>
        twice (a, given) => (c) {
            w = Constant <value = float[1, 1, 1, 2] {6, 5}> ()
            b = Conv <pads = [0, 0, 0, 1]> (a, w)
            c = Conv <pads = [0, 0, 0, 1]> (b, given)
        }
        """
    )
    onnx.checker.check_model(model)
    pruned, report = prune_model(model, 0.5)
    branches = {attribute.g.name: attribute.g for attribute in pruned.graph.node[0].attribute}
    assert numpy_helper.to_array(branches["right"].initializer[0]).ravel().tolist() == [4, 0]
    assert numpy_helper.to_array(pruned.functions[0].node[0].attribute[0].t).ravel().tolist() == [6, 0]
    # The function is handed the outer filter too, so the branch reads a copy.
    assert weight(pruned, "outer").ravel().tolist() == [1, 2]
    assert weight(pruned, "outer_pruned").ravel().tolist() == [0, 2]
    assert branches["left"].node[0].input[1] == "outer_pruned"
    assert [conv.name for conv in report.pruned] == ["l", "r", "b"]
    assert [(conv.name, conv.skipped) for conv in report.skipped] == [("c", "the filter is an input")]


def test_what_is_no_convolution_stays() -> None:
    model = model_of(
        [
            node("ConvTranspose", "x t", "h"),
            node("Conv", "h a", "c"),
            node("Flatten", "c", "f"),
            node("Gemm", "f g", "m"),
            node("MatMul", "m mm", "y"),
        ],
        {"t": normal(4, 4, 3, 3), "a": normal(2, 4, 10, 10), "g": normal(2, 5), "mm": normal(5, 3)},
    )
    pruned, report = prune_model(model, 0.5)
    for name in ("t", "g", "mm"):
        np.testing.assert_array_equal(weight(pruned, name), weight(model, name))
    assert [conv.weight for conv in report.convs] == ["a"]


def linear_layers() -> ModelProto:
    return model_of(
        [
            node("Conv", "x a", "c"),
            node("Flatten", "c", "f"),
            node("Gemm", "f g", "m", transB=1),
            node("MatMul", "m mm", "h"),
            node("MatMul", "h three", "y"),
        ],
        {"a": normal(2, 4, 10, 10), "g": normal(6, 2), "mm": normal(6, 4), "three": normal(1, 4, 3)},
    )


def test_linear_layers_are_pruned_on_demand() -> None:
    pruned, report = prune_model(linear_layers(), 0.5, linear=True)
    assert [conv.weight for conv in report.pruned] == ["a", "g", "mm"]
    assert [zeros(weight(pruned, name)) for name in ("a", "g", "mm", "three")] == [400, 6, 12, 0]
    assert [conv.skipped for conv in report.skipped] == ["the weight's shape (1, 4, 3) is no matrix"]


def test_vectors_of_outputs_need_them_along_the_first_axis() -> None:
    pruned, report = prune_model(linear_layers(), 0.5, pattern="vector:2", linear=True)
    assert [conv.weight for conv in report.pruned] == ["a", "g"] and "vectors" in str(report.skipped[0].skipped)
    kept = weight(pruned, "g").reshape(3, 2, 2) != 0
    assert (kept[:, 0] == kept[:, 1]).all()


def quantised(op: str) -> ModelProto:
    scale, zero, w = np.float32(0.1), np.uint8(0), np.ones((4, 4, 3, 3), np.uint8)
    weights = {"s": scale, "z": zero, "w": w}
    if op == "DequantizeLinear":
        nodes = [node("DequantizeLinear", "w s z", "wf"), node("Conv", "x wf", "y")]
    else:
        quantise = node("QuantizeLinear", "x s z", "xq")
        if op == "QLinearConv":
            nodes = [quantise, node("QLinearConv", "xq s z w s z s z", "yq"), node("DequantizeLinear", "yq s z", "y")]
        else:
            nodes = [quantise, node("ConvInteger", "xq w z z", "yi"), node("Cast", "yi", "y", to=TensorProto.FLOAT)]
    return model_of(nodes, weights)


@pytest.mark.parametrize("op", ["DequantizeLinear", "QLinearConv", "ConvInteger"])
def test_quantised_convolutions_are_skipped(op: str) -> None:
    model = quantised(op)
    pruned, report = prune_model(model, 0.5)
    assert pruned.SerializeToString() == model.SerializeToString()
    assert len(report.skipped) == 1 and "quantised" in str(report.skipped[0].skipped)
    assert (report.weights, report.before, report.after) == (0, 0.0, 0.0)


def test_computed_filters_are_skipped_with_the_reason() -> None:
    model = model_of(
        [node("Neg", "a", "n"), node("Conv", "x n", "h"), node("Conv", "h b", "y")],
        {"a": normal(4, 4, 3, 3), "b": normal(4, 4, 3, 3)},
    )
    pruned, report = prune_model(model, 0.5)
    assert report.convs[0].skipped == "the filter is computed by a Neg node" and report.convs[0].shape is None
    np.testing.assert_array_equal(weight(pruned, "a"), weight(model, "a"))
    assert zeros(weight(pruned, "b")) == 72


@pytest.mark.parametrize("skip", [["h_node"], ["a"], ["h*"], ["?"], "h_node", ["h_node", "a"]])
def test_skip_by_node_or_filter_name(skip: Any) -> None:
    model = two_convs()
    pruned, report = prune_model(model, 0.5, skip=skip)
    np.testing.assert_array_equal(weight(pruned, "a"), weight(model, "a"))
    assert "skip pattern" in str(report.convs[0].skipped) and report.convs[0].after == 0
    assert (zeros(weight(pruned, "b")) == 135) == (skip != ["?"])


def test_skip_takes_names_with_brackets_literally() -> None:
    model = two_convs()
    model.graph.node[0].name = "features[0].conv"
    assert len(prune_model(model, 0.5, skip=["features[0].conv"])[1].skipped) == 1


def test_skip_that_matches_nothing_names_itself() -> None:
    with pytest.raises(InputError, match=r"'stem\*' matches no convolution.*h_node, y_node"):
        prune_model(two_convs(), 0.5, skip=["h_node", "stem*"])


def test_a_model_without_convolutions_has_an_empty_report() -> None:
    model = model_of([node("Relu", "x", "y")], {})
    pruned, report = prune_model(model, 0.5)
    assert report == PruneReport((), 0, 0, 0) and pruned.SerializeToString() == model.SerializeToString()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sparsity": 1.0}, "sparsity 1.0"),
        ({"sparsity": 0.5, "pattern": "blocks"}, "pattern 'blocks'"),
        ({"sparsity": 0.5, "scope": "network"}, "scope 'network'"),
    ],
)
def test_refused_arguments(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        prune_model(two_convs(), **options)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_weights_are_refused_by_name_unless_skipped(bad: float) -> None:
    model = two_convs()
    b = weight(model, "b").copy()
    b[0, 0, 0, :2] = bad
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(b, "b"))
    with pytest.raises(
        ModelError, match=r"filter 'b' of convolution 'y_node' of shape \(5, 6, 3, 3\) has 2 NaN or Inf"
    ):
        prune_model(model, 0.5)
    prune_model(model, 0.5, skip=["b"])


def test_damaged_models_are_refused() -> None:
    model = two_convs()
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    with pytest.raises(ModelError, match="filter 'a' of convolution 'h_node' is damaged"):
        prune_model(model, 0.5)
    model = two_convs()
    model.graph.node[2].input[0] = "nowhere"
    with pytest.raises(ModelError, match=r"not valid ONNX.*y_node"):
        prune_model(model, 0.5)
    model = two_convs()
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "elsewhere.bin")
    model.graph.initializer[0].ClearField("raw_data")
    with pytest.raises(ModelError, match="stands outside the model"):
        prune_model(model, 0.5)


def test_a_ring_of_identities_ends() -> None:
    model = two_convs()
    model.graph.node.insert(0, node("Identity", "p", "q"))
    model.graph.node.insert(0, node("Identity", "q", "p"))
    model.graph.node[2].input[1] = "p"
    with pytest.raises(ModelError, match="not valid ONNX"):
        prune_model(model, 0.5)
