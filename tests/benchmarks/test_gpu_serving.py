"""Images a second of several devices: measured on CPU instances, and the table of a record."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import tvm_sparse
from benchmarks import gpu_serving
from benchmarks.markdown import NOTHING
from tests.network.onnx_models import conv, model, tensor, weights


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    net = model([conv("only", "x", "w", "y", pads=[1] * 4)], {"w": weights(8, 4, 3, 3)}, [tensor("x", (2, 4, 8, 8))])
    path = tmp_path_factory.mktemp("serving") / "small.so"
    tvm_sparse.compile(net, threads=1, verify=False).export(path)
    return path


def test_measured_on_two_instances(library: Path, tmp_path: Path) -> None:
    path = tmp_path / "serving.json"
    assert gpu_serving.serving(path) == NOTHING
    options = ["--devices", "cpu,cpu", "--seconds", "0.1", "--json", str(path), "--commit", "abc"]
    assert gpu_serving.main([str(library), *options]) == 0
    one, two = json.loads(path.read_text())["results"]
    assert (one["devices"], two["devices"], one["batch"]) == (["cpu"], ["cpu", "cpu"], 2)
    assert one["host_speed_up"] == one["device_speed_up"] == 1 and two["device_per_s"] > 0 and one["error"] == 0
    text = gpu_serving.serving(path)
    assert f"| {one['model']} | 2 | 2 | {two['host_per_s']:.0f}/s |" in text and "commit abc; 0.1 s each" in text


def test_devices_that_differ_are_an_error(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, calls = tvm_sparse.deploy.Network.run, []

    def wrong(self: tvm_sparse.deploy.Network, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        calls.append(self)
        return {name: array * (1 + 1e-5 * (len(calls) == 2)) for name, array in run(self, inputs).items()}

    monkeypatch.setattr(tvm_sparse.deploy.Network, "run", wrong)
    options = ["--devices", "cpu,cpu", "--seconds", "0.1", "--json", str(tmp_path / "serving.json")]
    assert gpu_serving.main([str(library), *options]) == 1
