"""The committed digits networks hold what digits.json says of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits"
REPORT = json.loads((DIGITS / "digits.json").read_text())


def convs(name: str) -> dict[str, np.ndarray]:
    graph = onnx.load(DIGITS / name).graph
    weights = {w.name: numpy_helper.to_array(w) for w in graph.initializer}
    return {node.name: weights[node.input[1]] for node in graph.node if node.op_type == "Conv"}


def test_pruned_convs_are_95_percent_zeros() -> None:
    sparsity = {name: np.mean(weight == 0) for name, weight in convs("digits_pruned95.onnx").items()}
    assert sparsity.pop("conv1") == 0
    assert sparsity == pytest.approx(REPORT["sparsity"])
    assert set(sparsity) == {"conv2", "conv3"}
    assert min(sparsity.values()) >= 0.95


def test_dense_convs_are_dense() -> None:
    assert all(np.count_nonzero(weight) == weight.size for weight in convs("digits_dense.onnx").values())


@pytest.mark.parametrize(("name", "key"), [("digits_dense", "dense_accuracy"), ("digits_pruned95", "pruned_accuracy")])
def test_accuracy_is_the_stated_one(name: str, key: str) -> None:
    test = np.load(DIGITS / "digits_test.npz")
    assert test["images"].shape == (REPORT["test_images"], 1, 8, 8)
    session = onnxruntime.InferenceSession(DIGITS / f"{name}.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"input": test["images"]})
    right = np.count_nonzero(logits.argmax(axis=1) == test["labels"])
    # one image may sit on the fence and fall the other way in another runtime
    assert abs(right - REPORT[key] * len(logits)) <= 1


def test_pruning_cost_at_most_one_and_a_half_points() -> None:
    assert REPORT["dense_accuracy"] >= 0.98
    assert REPORT["dense_accuracy"] - REPORT["pruned_accuracy"] <= 0.015


def test_held_out_images_are_scikit_learns() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    test = np.load(DIGITS / "digits_test.npz")
    known = {
        (image.astype(np.float32) / 16).tobytes(): label
        for image, label in zip(digits.images, digits.target, strict=True)
    }
    labels = [known[image.tobytes()] for image in test["images"]]
    assert labels == test["labels"].tolist()


def test_batch_is_symbolic() -> None:
    graph = onnx.load(DIGITS / "digits_pruned95.onnx").graph
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert graph.output[0].type.tensor_type.shape.dim[0].dim_param == "N"
