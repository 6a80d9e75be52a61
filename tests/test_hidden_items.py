"""What several kernels make, each of them several tensors, may be read by operators that become one function."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tvm_sparse


def six_pairs() -> onnx.ModelProto:
    """Six inputs, two convolutions of each, and what these make negated, transposed and put together."""
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for x in "abcdef":
        for part in "01":
            weight = (rng.standard_normal((8, 6, 3, 3)) * (rng.random((8, 6, 3, 3)) < 0.2)).astype(np.float32)
            weights.append(numpy_helper.from_array(weight, f"w{x}{part}"))
            nodes.append(helper.make_node("Conv", [x, f"w{x}{part}"], [f"c{x}{part}"], name=f"conv_{x}{part}"))
            nodes.append(helper.make_node("Neg", [f"c{x}{part}"], [f"n{x}{part}"]))
            nodes.append(helper.make_node("Transpose", [f"n{x}{part}"], [f"t{x}{part}"], perm=[0, 2, 3, 1]))
        nodes.append(helper.make_node("Concat", [f"t{x}0", f"t{x}1"], [f"y{x}"], axis=3))
    nodes.append(helper.make_node("Concat", [f"y{x}" for x in "abcdef"], ["y"], axis=1))
    inputs = [helper.make_tensor_value_info(x, TensorProto.FLOAT, [1, 6, 9, 9]) for x in "abcdef"]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 42, 7, 16])
    graph = helper.make_graph(nodes, "six_pairs", inputs, [output], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("mode", ["always", "never"])
def test_items_of_several_kernels_meet_in_one_function(mode: str) -> None:
    network = tvm_sparse.compile(six_pairs(), sparse=mode)  # verified against onnxruntime
    assert [" + " in layer.name for layer in network.report()] == [True] * 6
