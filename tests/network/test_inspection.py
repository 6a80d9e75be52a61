"""What `inspect` says about a model, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
from onnx import helper

from tests.network.onnx_models import conv, model, one_conv, tensor, weights
from tvm_sparse.network.inspection import inspect_model
from tvm_sparse.network.onnx_import import import_onnx


def test_the_numbers_of_one_convolution() -> None:
    weight = np.zeros((4, 3, 3, 2), np.float32)
    weight[0] = 1
    weight[1, 0, :, 0] = 2
    weight[3, 2, 1, 1] = 3
    imported = import_onnx(one_conv((2, 3, 9, 8), weight, strides=[2, 1], pads=[1, 0, 0, 2], dilations=[1, 2]))
    (layer,) = inspect_model(imported)
    assert (layer.name, layer.groups, layer.eligible) == ("first", 1, True)
    assert (layer.input_shape, layer.filter_shape, layer.output_shape) == ((2, 3, 9, 8), (4, 3, 3, 2), (2, 4, 4, 8))
    assert (layer.stride, layer.padding, layer.dilation) == ((2, 1), (1, 0, 0, 2), (1, 2))
    assert layer.nnz == 18 + 3 + 1
    assert layer.sparsity == 1 - 22 / 72
    assert layer.macs_dense == 2 * 4 * 8 * 72
    assert layer.macs_sparse == 2 * 4 * 8 * 22
    assert (layer.row_min, layer.row_median, layer.row_max, layer.empty_rows) == (0, 2.0, 18, 1)


def test_groups_count_only_their_own_channels() -> None:
    imported = import_onnx(one_conv((1, 4, 5, 5), weights(8, 2, 1, 1), group=2))
    (layer,) = inspect_model(imported)
    assert (layer.groups, layer.macs_dense, layer.row_max) == (2, 25 * 8 * 2, 2)


def test_what_is_not_eligible_says_why() -> None:
    nodes = [
        helper.make_node("ConvTranspose", ["x", "up"], ["a"], name="up", strides=[2, 2]),
        conv("computed", "a", "f", "b"),
        conv("plain", "b", "w", "y"),
    ]
    inputs = [tensor("x", (1, 3, 4, 4)), tensor("f", (2, 5, 1, 1))]
    imported = import_onnx(model(nodes, {"up": weights(3, 5, 2, 2), "w": weights(4, 2, 1, 1)}, inputs))
    up, computed, plain = inspect_model(imported)
    assert (up.name, up.eligible, plain.name, plain.eligible) == ("up", False, "plain", True)
    assert "transpose" in up.reason
    assert (up.macs_dense, up.row_max) == (16 * 3 * 5 * 4, 12)
    assert not computed.eligible
    assert "run time" in computed.reason
    assert computed.macs_dense == 64 * 10
    assert (computed.nnz, computed.macs_sparse, computed.row_max) == (None, None, None)


def test_a_model_without_convolutions_has_nothing_to_list() -> None:
    imported = import_onnx(model([helper.make_node("Relu", ["x"], ["y"])], {}))
    assert inspect_model(imported) == []
