"""The example builders: the layers and weights of the papers, exact sparsity, usable outputs, reproducible bytes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, shape_inference

from examples.networks import NAMES, build
from examples.networks.__main__ import main
from tvm_sparse.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
SPARSITY = 0.9


@dataclass(frozen=True)
class Published:
    """What the papers and torchvision say about a network."""

    image: int
    convs: int
    parameters: int  # trainable ones: without the running statistics
    filters: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]


PUBLISHED = {
    "resnet50": Published(
        224,
        53,
        25_557_032,
        {"conv1": (64, 3, 7, 7), "layer1.0.downsample.0": (256, 64, 1, 1), "layer4.2.conv2": (512, 512, 3, 3)},
        {"maxpool": (1, 64, 56, 56), "layer2.0.conv1": (1, 128, 56, 56), "layer2.0.conv2": (1, 128, 28, 28)},
    ),
    "alexnet": Published(
        227,
        5,
        60_965_224,
        {"conv1": (96, 3, 11, 11), "conv2": (256, 48, 5, 5), "conv4": (384, 192, 3, 3), "conv5": (256, 192, 3, 3)},
        {"conv1": (1, 96, 55, 55), "conv2": (1, 256, 27, 27), "pool5": (1, 256, 6, 6)},
    ),
    "googlenet": Published(
        224,
        57,
        6_998_552,
        {"conv2/3x3": (192, 64, 3, 3), "inception_4a/5x5": (48, 16, 5, 5), "inception_5b/1x1": (384, 832, 1, 1)},
        {"inception_3a/output": (1, 256, 28, 28), "inception_5b/output": (1, 1024, 7, 7)},
    ),
    "vgg16": Published(
        224,
        13,
        138_357_544,
        {"features.0": (64, 3, 3, 3), "features.28": (512, 512, 3, 3)},
        {"features.28": (1, 512, 14, 14), "features.30": (1, 512, 7, 7)},
    ),
    "mobilenetv1": Published(
        224,
        27,
        4_231_976,
        {"Conv2d_0": (32, 3, 3, 3), "Conv2d_6_depthwise": (256, 1, 3, 3), "Conv2d_13_pointwise": (1024, 1024, 1, 1)},
        {"Conv2d_0": (1, 32, 112, 112), "Conv2d_13_pointwise": (1, 1024, 7, 7)},
    ),
}
HEAVY = {"alexnet", "vgg16"}


@dataclass(frozen=True)
class Built:
    """A network once built, shared by the tests below."""

    name: str
    model: onnx.ModelProto
    weights: dict[str, np.ndarray]

    @property
    def convs(self) -> list[onnx.NodeProto]:
        return [node for node in self.model.graph.node if node.op_type == "Conv"]


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.slow if name in HEAVY else ()) for name in NAMES]
)
def built(request: pytest.FixtureRequest) -> Built:
    model = build(request.param, sparsity=SPARSITY)
    return Built(request.param, model, {w.name: numpy_helper.to_array(w) for w in model.graph.initializer})


def logits(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"input": x})[0]


def test_every_name_is_checked() -> None:
    assert set(PUBLISHED) == set(NAMES)


def test_layers_and_parameters_are_the_published_ones(built: Built) -> None:
    published = PUBLISHED[built.name]
    onnx.checker.check_model(built.model, full_check=True)
    assert [opset.version for opset in built.model.opset_import] == [17]
    assert len(built.convs) == published.convs
    for name, shape in published.filters.items():
        assert built.weights[f"{name}.weight"].shape == shape
    trained = {n: w for n, w in built.weights.items() if not n.endswith((".running_mean", ".running_var")) and w.ndim}
    assert sum(w.size for w in trained.values()) == published.parameters


def test_activation_shapes(built: Built) -> None:
    published = PUBLISHED[built.name]
    graph = shape_inference.infer_shapes(built.model, strict_mode=True).graph
    inferred = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in graph.value_info}
    for name, shape in published.outputs.items():
        assert inferred[name] == shape
    (x,), (y,) = graph.input, graph.output
    assert [d.dim_value for d in x.type.tensor_type.shape.dim] == [1, 3, published.image, published.image]
    assert [d.dim_value for d in y.type.tensor_type.shape.dim] == [1, 1000]


def test_every_conv_but_the_first_has_the_sparsity(built: Built) -> None:
    first, *others = (built.weights[node.input[1]] for node in built.convs)
    assert np.count_nonzero(first) == first.size
    for weight in others:
        zeros = weight.size - np.count_nonzero(weight)
        assert abs(zeros - SPARSITY * weight.size) < 1
    assert all((w > 0).all() for n, w in built.weights.items() if n.endswith(".running_var"))


def test_outputs_are_finite_and_depend_on_the_input(built: Built) -> None:
    size = PUBLISHED[built.name].image
    draw = np.random.default_rng(0)
    y1, y2 = (logits(built.model, draw.standard_normal((1, 3, size, size), dtype=np.float32)) for _ in range(2))
    assert y1.shape == (1, 1000)
    assert np.isfinite(y1).all() and np.isfinite(y2).all()
    assert 1e-2 < y1.std() < 1e2
    assert (y1 - y2).std() > 0.02 * y1.std()


def test_same_seed_same_bytes() -> None:
    once, again, other = (build("googlenet", seed=seed).SerializeToString() for seed in (3, 3, 4))
    assert once == again
    assert once != other


def test_linear_layers_are_pruned_on_demand() -> None:
    model = build("mobilenetv1", linear_sparsity=0.9)
    (weight,) = (numpy_helper.to_array(init) for init in model.graph.initializer if len(init.dims) == 2)
    assert np.count_nonzero(weight) == round(0.1 * weight.size)


@pytest.mark.parametrize("sparsity", [0.0, 0.999])
def test_extreme_sparsities(sparsity: float) -> None:
    model = build("mobilenetv1", sparsity=sparsity, batch=2)
    weights = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    pointwise = weights["Conv2d_5_pointwise.weight"]
    assert abs(np.count_nonzero(pointwise) - (1 - sparsity) * pointwise.size) < 1
    y = logits(model, np.ones((2, 3, 224, 224), np.float32))
    assert y.shape == (2, 1000)
    assert np.isfinite(y).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet51"}, "resnet51"),
        ({"name": "resnet50", "batch": 0}, "batch"),
        ({"name": "resnet50", "sparsity": 1.0}, "sparsity"),
        ({"name": "resnet50", "sparsity": float("nan")}, "sparsity"),
        ({"name": "alexnet", "linear_sparsity": -0.1}, "sparsity"),
        ({"name": "resnet50", "seed": -1}, "seed"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(**arguments)


@pytest.mark.parametrize("command", [["-m", "examples.networks"], ["examples/networks"]])
def test_command_line_writes_what_build_returns(command: list[str], tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    options = ["mobilenetv1", "-o", str(path), "--sparsity", "0.5", "--batch", "3", "--seed", "7"]
    options += ["--linear-sparsity", "0.5"]
    subprocess.run([sys.executable, *command, *options], cwd=ROOT, check=True, timeout=120)
    assert (
        path.read_bytes()
        == build("mobilenetv1", sparsity=0.5, batch=3, seed=7, linear_sparsity=0.5).SerializeToString()
    )


def test_command_line_reports_bad_input_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        InputError.exit_code: ["mobilenetv1", "-o", str(tmp_path / "a.onnx"), "--sparsity", "2"],
        1: ["mobilenetv1", "-o", str(tmp_path / "no such folder" / "a.onnx")],
    }
    for code, arguments in cases.items():
        assert main(arguments) == code
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
