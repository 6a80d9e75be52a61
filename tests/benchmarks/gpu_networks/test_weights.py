"""Published filters in the place of seeded ones."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import numpy_helper

from benchmarks.gpu_networks.cases import PUBLISHED, Case
from benchmarks.gpu_networks.weights import array_of, networks_published, put_published
from examples.networks import build
from tvm_sparse.errors import InputError

REPO = Path(__file__).resolve().parents[3]
PRUNED = Path(os.environ.get("TVM_SPARSE_DATA", REPO / "../shared/data/pruned"))


@pytest.mark.parametrize(
    ("node", "array"),
    [
        ("Conv2d_0", "initial_conv"),
        ("Conv2d_1_depthwise", "dw0"),
        ("Conv2d_12_pointwise", "pw11"),
        ("Conv2d_13_pointwise", "pw12"),
        ("Logits", ""),
        ("Conv2d_x_pointwise", ""),
        ("", ""),
    ],
)
def test_which_array_belongs_to_a_node(node, array):
    assert array_of(node) == array


@pytest.fixture
def folder(tmp_path):
    """Two layers: one pointwise and one depthwise."""
    rng = np.random.default_rng(0)
    pointwise = rng.standard_normal((64, 32)).astype(np.float32)
    pointwise[rng.random(pointwise.shape) < 0.9] = 0
    arrays = {"pw0": pointwise, "dw1": rng.standard_normal((64, 1, 3, 3)).astype(np.float32)}
    biases = {f"{name}_bias": np.arange(64, dtype=np.float32) / 64 for name in arrays}
    np.savez(tmp_path / "mobilenet_v1_90.npz", **arrays, **biases)
    return tmp_path


def arrays_of(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_a_published_layer_computes_the_published_filter_and_bias(folder):
    model = build("mobilenetv1")
    seeded = arrays_of(model)
    assert put_published(model, "mobilenetv1", folder) == ["Conv2d_1_pointwise", "Conv2d_2_depthwise"]
    found = arrays_of(model)
    with np.load(folder / "mobilenet_v1_90.npz") as published:
        assert np.array_equal(found["Conv2d_1_pointwise.weight"], published["pw0"].reshape(64, 32, 1, 1))
        scale, bias, mean, variance = (
            found[f"Conv2d_1_pointwise/BatchNorm.{name}"] for name in ("weight", "bias", "running_mean", "running_var")
        )
        np.testing.assert_allclose(scale / np.sqrt(variance + np.float32(1e-5)), 1, rtol=1e-6)
        assert np.array_equal(bias - mean, published["pw0_bias"])
    unchanged = [name for name in seeded if not name.startswith(("Conv2d_1_pointwise", "Conv2d_2_depthwise"))]
    assert all(np.array_equal(found[name], seeded[name]) for name in unchanged) and len(unchanged) > 100


def test_folders_without_what_is_wanted(folder, tmp_path):
    assert networks_published(folder) == ["mobilenetv1"]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="no published filters here"):
        networks_published(empty)
    for missing in (None, empty):
        with pytest.raises(InputError, match="give --weights"):
            put_published(build("mobilenetv1"), "mobilenetv1", missing)
    np.savez(empty / "mobilenet_v1_90.npz", pw0=np.zeros((64, 31)), pw0_bias=np.zeros(64))
    with pytest.raises(InputError, match=r"pw0 \(64, 31\) does not fit Conv2d_1_pointwise.weight \(64, 32, 1, 1\)"):
        put_published(build("mobilenetv1"), "mobilenetv1", empty)
    np.savez(empty / "mobilenet_v1_90.npz", other=np.zeros(3))
    with pytest.raises(InputError, match="holds no filter of mobilenetv1"):
        put_published(build("mobilenetv1"), "mobilenetv1", empty)


@pytest.mark.skipif(not (PRUNED / "mobilenet_v1_90.npz").is_file(), reason="no published filters; set TVM_SPARSE_DATA")
def test_the_published_mobilenet_is_a_live_network():
    model = Case("mobilenetv1", 2, weights=PUBLISHED).model(0, PRUNED)
    filters = {name: array for name, array in arrays_of(model).items() if name.endswith("pointwise.weight")}
    assert {round(float((array == 0).mean()), 2) for array in filters.values()} == {0.9}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input": np.random.default_rng(0).standard_normal((2, 3, 224, 224), np.float32)})
    assert np.isfinite(logits).all() and logits.std() > 0.1
    assert np.linalg.norm(logits[0] - logits[1]) > 0.01 * np.linalg.norm(logits[0]), "images make a difference"
