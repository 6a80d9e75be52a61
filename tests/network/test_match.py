"""Which convolutions are found, and what is fused behind them. Nothing is compiled here."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from tvm import relax

from tests.network.layer_cases import constant_of, layer_cases
from tvm_sparse.network.imported import ImportedModel, bindings_of
from tvm_sparse.network.match import ConvLayer, match_layers
from tvm_sparse.network.onnx_import import import_onnx

CASES = layer_cases()


@cache
def imported(index: int) -> ImportedModel:
    return import_onnx(CASES[index].model)


def layers_of(model: ImportedModel) -> list[ConvLayer]:
    return match_layers(model.module["main"], model.convolutions)


def test_the_cases_have_different_names() -> None:
    assert len({case.name for case in CASES}) == len(CASES) > 60


@pytest.mark.parametrize("index", range(len(CASES)), ids=[case.name for case in CASES])
def test_layers_and_epilogues(index: int) -> None:
    layers = layers_of(imported(index))
    assert {layer.name: layer.workload and str(layer.workload.epilogue) for layer in layers} == CASES[index].layers
    for layer in layers:
        assert bool(layer.reason) == (layer.workload is None)
        if layer.workload is not None:
            assert layer.workload.filter_shape == layer.weight.shape
            assert (layer.bias is not None) == layer.workload.epilogue.bias
            assert (layer.residual is not None) == layer.workload.epilogue.residual


@pytest.mark.parametrize("index", range(len(CASES)), ids=[case.name for case in CASES])
def test_no_value_is_lost(index: int) -> None:
    """What a layer reads is no value inside of another one, and exists where the layer stands in the function."""
    model = imported(index)
    layers = layers_of(model)
    order = {var: place for place, (var, _) in enumerate(bindings_of(model.module["main"]))}
    absorbed = [var for layer in layers for var in layer.absorbed]
    assert len(set(absorbed)) == len(absorbed)
    for layer in layers:
        assert layer.root not in absorbed
        for value in (layer.x, layer.residual):
            if isinstance(value, relax.Var):
                assert value not in absorbed
                assert order.get(value, -1) < order[layer.root]  # parameters have no place


def test_biases_are_added_up() -> None:
    (index,) = (index for index, case in enumerate(CASES) if case.name == "bias twice")
    (layer,) = layers_of(imported(index))
    expected = constant_of(CASES[index], "b") + constant_of(CASES[index], "B").reshape(8)
    assert layer.bias is not None
    np.testing.assert_allclose(layer.bias, expected, rtol=1e-6)


def test_density_and_depthwise() -> None:
    by_name = {case.name: layers_of(imported(index)) for index, case in enumerate(CASES)}
    assert [layer.density for layer in by_name["a single nonzero"]] == [1 / 288]
    assert [layer.density for layer in by_name["nothing but zeros"]] == [0.0]
    depthwise = [name for name, layers in by_name.items() if any(layer.depthwise for layer in layers)]
    assert depthwise == ["depthwise", "depthwise, two a channel"]
