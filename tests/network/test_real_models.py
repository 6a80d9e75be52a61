"""The table of real networks holds: shapes, convolutions, and inputs that the pruned networks still react to."""

from __future__ import annotations

import importlib.util

import numpy as np
import onnx
import onnxruntime
import onnxslim
import pytest

from tests.network.real_models import (
    MODELS,
    ONNX_NAMES,
    depthwise_filters,
    find,
    load_efficientnet_lite0,
    sample_inputs,
    with_probes,
)
from tvm_sparse.prune import prune_model


def load(name: str) -> onnx.ModelProto:
    path = find(name)
    if path is None:
        pytest.skip(f"{MODELS[name].requirement} is not installed")
    return onnx.load(path)


def run(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


@pytest.mark.parametrize("name", ONNX_NAMES)
def test_inputs_fit_the_file(name: str) -> None:
    model = load(name)
    constants = {weight.name for weight in model.graph.initializer}
    inputs = {
        value.name: value.type.tensor_type.shape.dim for value in model.graph.input if value.name not in constants
    }
    assert set(inputs) == set(MODELS[name].shapes)
    for key, dims in inputs.items():
        pinned = MODELS[name].shapes[key]
        assert len(dims) == len(pinned)
        assert all(d.dim_value in (n, 0, -1) for d, n in zip(dims, pinned, strict=True))
        assert sample_inputs(name)[key].shape == pinned
    assert sum(node.op_type == "Conv" for node in model.graph.node) == MODELS[name].convs


@pytest.mark.parametrize("name", ONNX_NAMES)
def test_pinned_and_slimmed_it_computes_the_same(name: str) -> None:
    model = load(name)
    shapes = [f"{key}:{','.join(map(str, shape))}" for key, shape in MODELS[name].shapes.items()]
    inputs = sample_inputs(name)
    expected = run(model, inputs)
    slim = onnxslim.slim(model, input_shapes=shapes)
    for y, z in zip(expected, run(slim, inputs), strict=True):
        np.testing.assert_allclose(z, y, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ONNX_NAMES)
def test_pruned_it_still_depends_on_its_input(name: str) -> None:
    model = load(name)
    pruned, _ = prune_model(model, 0.9, skip=depthwise_filters(model))
    probed = with_probes(pruned)
    outputs = len(model.graph.output)
    one, two = (run(probed, sample_inputs(name, seed))[outputs:] for seed in (0, 1))
    assert len(one) == 6
    reaction = [np.abs(a - b).max() / np.abs(a).max() for a, b in zip(one, two, strict=True)]
    assert min(reaction) > 1e-3, reaction  # ten times what a comparison to 1e-4 forgives


def test_efficientnet_lite0_runs() -> None:
    network = load_efficientnet_lite0()
    if network is None:
        pytest.skip(f"{MODELS['efficientnet_lite0'].requirement} or the code and torch it needs are not installed")
    import torch

    assert sum(isinstance(m, torch.nn.Conv2d) for m in network.modules()) == MODELS["efficientnet_lite0"].convs
    one, two = (network(torch.from_numpy(sample_inputs("efficientnet_lite0", seed)["x"])) for seed in (0, 1))
    assert one.shape == (1, 1000)
    assert float((one - two).abs().max()) > 0.1


def test_a_missing_package_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert all(find(name) is None for name in MODELS)
    assert load_efficientnet_lite0() is None
