"""The whole main job through the real command line, each command in a process of its own; then everything bad."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.test_tvm_support import needs_cuda, without_driver

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "examples" / "digits"
MODEL = DIGITS / "digits_pruned95.onnx"
#: What the installed `tvm-sparse` runs.
SCRIPT = "import sys; from tvm_sparse.cli import main; sys.exit(main())"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    def done(self) -> str:
        """What it printed, when it was to succeed."""
        assert self.code == 0, self.err
        assert "error" not in self.err and "Traceback" not in self.err
        return self.out

    def failed(self, code: int, *names: object) -> None:
        """One error line, the last one, with all of `names` in it; before it only stages of the work."""
        *stages, error = self.err.splitlines()
        assert (self.code, error[:7]) == (code, "error: "), self.err
        assert all(stage.endswith("…") for stage in stages), self.err
        assert not [name for name in names if str(name) not in error], error
        assert self.out == "" and "Traceback" not in self.err


def cli(*arguments: object, cwd: Path) -> Ended:
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    return Ended(process.returncode, process.stdout, process.stderr)


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with digits.so, the pruned digits network for two images, and digits.json, what compile said of it."""
    folder = tmp_path_factory.mktemp("cli")
    out = cli(
        "compile", MODEL, "-o", "digits.so", "--batch", 2, "--threads", 2, "--json", "digits.json", cwd=folder
    ).done()
    assert "verification: output " in out and "sparse convolutions: 2 of 3" in out
    return folder


@pytest.fixture
def library(work: Path) -> Path:
    return work / "digits.so"


def images() -> np.ndarray:
    with np.load(DIGITS / "digits_test.npz") as arrays:
        return arrays["images"][:2]


def input_name() -> str:
    return onnx.load(MODEL).graph.input[0].name


# --- the main job ------------------------------------------------------------------------------------------------


def test_inspect(tmp_path: Path) -> None:
    layers = json.loads(cli("inspect", MODEL, "--batch", 2, "--json", cwd=tmp_path).done())
    stated = json.loads((DIGITS / "digits.json").read_text())["sparsity"]
    assert {layer["name"]: layer["sparsity"] for layer in layers if layer["name"] in stated} == pytest.approx(stated)
    assert len(layers) == 3 and all(layer["eligible"] for layer in layers)
    assert layers[0]["input_shape"][0] == 2


def test_prune_then_compile_then_verify(tmp_path: Path) -> None:
    printed = cli(
        "prune", DIGITS / "digits_dense.onnx", "-o", "pruned.onnx", "--sparsity", 0.9, "--skip", "conv1", cwd=tmp_path
    ).done()
    assert "conv2" in printed and "pruned.onnx" in printed
    printed = cli("compile", "pruned.onnx", "-o", "pruned.so", "--batch", 1, "--sparse", "always", cwd=tmp_path).done()
    assert "sparse convolutions: 3 of 3" in printed
    verdict = json.loads(cli("verify", "pruned.onnx", "pruned.so", "--json", cwd=tmp_path).done())
    assert verdict["passed"] and verdict["reference"] == "onnxruntime"


def test_compile_says_what_it_did(work: Path, library: Path) -> None:
    report = json.loads((work / "digits.json").read_text())
    assert [layer["decision"] for layer in report["layers"]] == ["dense", "sparse", "sparse"]
    assert report["verification"]["reference"] == "onnxruntime" and report["verification"]["passed"]
    assert 0 < max(report["verification"]["relative_error"].values()) <= 1e-5
    assert report["export"]["library_bytes"] == library.stat().st_size
    assert report["sparse_bytes"] < report["dense_bytes"]


def test_run_on_given_input(work: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **{input_name(): images()})
    printed = cli("run", work / "digits.so", "--input", "x.npz", "--output", "y.npz", cwd=tmp_path).done()
    (expected,) = onnxruntime.InferenceSession(MODEL).run(None, {input_name(): images()})
    with np.load(tmp_path / "y.npz") as outputs:
        (name,) = outputs.files
        np.testing.assert_allclose(outputs[name], expected, rtol=1e-4, atol=1e-4)
    assert name in printed and "2×10" in printed


def test_run_on_random_input(library: Path, tmp_path: Path) -> None:
    once, other = (cli("run", library, "--random", seed, cwd=tmp_path).done() for seed in (3, 4))
    assert "2×10" in once and "2×10" in other and once != other


def test_verify_against_other_weights_is_a_mismatch(library: Path, tmp_path: Path) -> None:
    ended = cli("verify", DIGITS / "digits_dense.onnx", library, cwd=tmp_path)
    assert "passed: no" in ended.out
    Ended(ended.code, "", ended.err).failed(6, library, "relative error", "digits_dense.onnx")


def test_bench(library: Path, tmp_path: Path) -> None:
    cli("bench", library, "--repeats", 5, "--warmup", 1, "--json", "bench.json", cwd=tmp_path).done()
    timing = json.loads((tmp_path / "bench.json").read_text())
    assert 0 < timing["min_us"] <= timing["median_us"] <= timing["p95_us"]


def test_collect_env(tmp_path: Path) -> None:
    printed = cli("collect-env", cwd=tmp_path).done()
    assert "0.27.0.post1" in printed and sys.version.split()[0] in printed


# --- bad input ---------------------------------------------------------------------------------------------------


def _changed(change: Any) -> bytes:
    model = onnx.load(MODEL)
    change(model)
    return model.SerializeToString()


def _bad_weight(value: float) -> Any:
    def change(model: onnx.ModelProto) -> None:
        init = next(init for init in model.graph.initializer if len(init.dims) == 4)
        array = numpy_helper.to_array(init).copy()
        array.flat[5] = value
        init.CopyFrom(numpy_helper.from_array(array, init.name))

    return change


def _unsupported(model: onnx.ModelProto) -> None:
    last = model.graph.output[0].name
    producer = next(node for node in model.graph.node if last in node.output)
    producer.output[list(producer.output).index(last)] = "scores"
    odd = (
        helper.make_node("Sorcery", ["scores"], ["a"], name="hocus"),
        helper.make_node("Sorcery", ["a"], [last], name="pocus"),
    )
    model.graph.node.extend(odd)


BAD_MODELS = {
    "truncated.onnx": (lambda: MODEL.read_bytes()[:-3000], ["truncated.onnx", "truncated"]),
    "text.onnx": (lambda: b"import torch\n" * 100, ["text.onnx", "not an ONNX file"]),
    "empty.onnx": (lambda: b"", ["empty.onnx"]),
    "nan.onnx": (lambda: _changed(_bad_weight(np.nan)), ["nan.onnx", "NaN in tensor", "Conv node"]),
    "inf.onnx": (lambda: _changed(_bad_weight(np.inf)), ["inf.onnx", "infinity in tensor", "Conv node"]),
    "odd.onnx": (lambda: _changed(_unsupported), ["odd.onnx", "unsupported operators", "Sorcery (hocus, pocus)"]),
    "missing.onnx": (None, ["missing.onnx", "no such file"]),
    "net.txt": (lambda: b"x", ["net.txt", ".onnx"]),
    "broken.pt2": (lambda: b"PK\x03\x04 not a program", ["broken.pt2"]),
}
#: Much like the others, and every one imports the compiler.
SELDOM = ("empty.onnx", "inf.onnx", "missing.onnx", "net.txt")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SELDOM else ()) for name in BAD_MODELS]
)
def test_a_bad_model_is_3_and_leaves_the_old_library(name: str, tmp_path: Path) -> None:
    if name.endswith(".pt2"):
        pytest.importorskip("torch")
    content, words = BAD_MODELS[name]
    if content is not None:
        (tmp_path / name).write_bytes(content())
    (tmp_path / "net.so").write_bytes(b"the old library")
    cli("compile", name, "-o", "net.so", "--batch", 1, cwd=tmp_path).failed(3, *words)
    assert (tmp_path / "net.so").read_bytes() == b"the old library"
    assert {path.name for path in tmp_path.iterdir()} <= {name, "net.so"}


def test_open_shapes_are_3_and_say_how_to_pin_them(tmp_path: Path) -> None:
    ended = cli("compile", MODEL, "-o", "net.so", cwd=tmp_path)
    ended.failed(3, MODEL.name, f"input '{input_name()}'", "dimension 0", "--batch")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--mcpu", "80486dx"], 5, ["80486dx", "--mcpu"]),
        (["--target", "cuda"], 5, ["--arch"]),
        (["--target", "cuda", "--arch", "sm_1"], 5, ["sm_1"]),
        (["--arch", "sm_90"], 4, ["--arch sm_90", "--target cuda"]),
        (["--shape", "{input}=1x3x8x8"], 4, ["1x3x8x8", "{input}"]),
    ],
    ids=str,
)
def test_bad_options(options: list[str], code: int, words: list[str], tmp_path: Path) -> None:
    options, words = ([text.replace("{input}", input_name()) for text in texts] for texts in (options, words))
    cli("compile", MODEL, "-o", "net.so", *options, cwd=tmp_path).failed(code, *words)
    assert not list(tmp_path.iterdir())


def test_one_library_for_several_batches(tmp_path: Path) -> None:
    printed = cli("compile", MODEL, "-o", "net.so", "--batch", "1-3", cwd=tmp_path).done()
    assert "batches: 1 to 3, compiled for 1, 2, 3" in printed
    assert "1×10" in cli("run", "net.so", "--random", 0, "--batch", 1, cwd=tmp_path).done()
    np.savez(tmp_path / "x.npz", **{input_name(): images()})
    assert "2×10" in cli("run", "net.so", "--input", "x.npz", cwd=tmp_path).done()
    assert "batch: 2" in cli("bench", "net.so", "--batch", 2, "--repeats", 3, cwd=tmp_path).done()
    assert "batches: 1, 2, 3" in cli("verify", MODEL, "net.so", cwd=tmp_path).done()
    cli("bench", "net.so", "--batch", 4, cwd=tmp_path).failed(4, "batch 4", "serves 1 to 3")


def test_images_a_second_on_several_instances(library: Path, tmp_path: Path) -> None:
    printed = cli("bench", library, "--devices", "cpu,cpu", "--seconds", 0.2, "--json", "r.json", cwd=tmp_path).done()
    assert printed.splitlines()[1] == "images of a call: 2" and "cpu, cpu" in printed
    rates = json.loads((tmp_path / "r.json").read_text())["rates"]
    assert [rate["devices"] for rate in rates] == [["cpu"], ["cpu", "cpu"]]
    cli("bench", library, "--devices", "0,1", cwd=tmp_path).failed(4, "cuda:0", "compiled for cpu")
    usage = cli("bench", library, "--devices", "all", "--compare", "torch", "--model", MODEL, cwd=tmp_path)
    assert usage.code == 2 and "--devices" in usage.err


@pytest.mark.parametrize("batch", ["0", "-1", "two", "3-1", "1..4"])
def test_a_batch_that_is_none_is_wrong_usage(batch: str, tmp_path: Path) -> None:
    ended = cli("compile", MODEL, "-o", "net.so", "--batch", batch, cwd=tmp_path)
    assert ended.code == 2 and "--batch" in ended.err and "Traceback" not in ended.err
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_written_is_8_at_once(library: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for output in ("nowhere/net.so", "file/net.so"):
        cli("compile", "not-even-read.onnx", "-o", output, cwd=tmp_path).failed(8, output)
        cli("run", library, "--random", 0, "-o", output, cwd=tmp_path).failed(8, output)
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (lambda name: {name: images()[:1]}, ["{input}", "(1, 1, 8, 8)", "(2, 1, 8, 8)"]),
        (lambda name: {name: images().astype(np.float64)}, ["{input}", "float64", "float32"]),
        (lambda name: {"pixels": images()}, ["pixels", "{input}"]),
        (lambda name: {}, ["{input}"]),
        (lambda name: {name: images(), "more": images()}, ["more"]),
    ],
    ids=["shape", "dtype", "name", "nothing", "too many"],
)
def test_a_bad_input_array_is_4(arrays: Any, words: list[str], library: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **arrays(input_name()))
    (tmp_path / "y.npz").write_bytes(b"the old result")
    ended = cli("run", library, "--input", "x.npz", "--output", "y.npz", cwd=tmp_path)
    ended.failed(4, *(word.replace("{input}", input_name()) for word in words))
    assert (tmp_path / "y.npz").read_bytes() == b"the old result"


def test_an_input_file_that_is_none_is_4(library: Path, tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"not a zip archive")
    for name in ("x.npz", "missing.npz"):
        cli("run", library, "--input", name, cwd=tmp_path).failed(4, name)


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "missing"])
def test_a_damaged_library_is_7(damage: str, library: Path, tmp_path: Path) -> None:
    content = bytearray(library.read_bytes())
    content[len(content) // 2] ^= 0x10
    damaged = {"cut": library.read_bytes()[:-1000], "flipped": bytes(content), "text": b"hello\n"}
    if damage in damaged:
        (tmp_path / "net.so").write_bytes(damaged[damage])
    for command in (["run", "net.so", "--random", 0], ["bench", "net.so"], ["verify", MODEL, "net.so"]):
        cli(*command, cwd=tmp_path).failed(7, "net.so")


def test_verify_against_a_model_with_other_inputs_is_7(library: Path, tmp_path: Path) -> None:
    x, w = helper.make_tensor_value_info("other", TensorProto.FLOAT, (2, 1, 8, 8)), np.ones((4, 1, 3, 3), np.float32)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, (2, 4, 6, 6))
    conv = helper.make_node("Conv", ["other", "w"], ["y"])
    graph = helper.make_graph([conv], "net", [x], [y], [numpy_helper.from_array(w, "w")])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "other.onnx"
    )
    cli("verify", "other.onnx", library, cwd=tmp_path).failed(7, library, "another model", input_name())


@pytest.mark.slow
@needs_cuda
@without_driver
def test_a_library_for_a_gpu_needs_one(tmp_path: Path) -> None:
    printed = cli(
        "compile", MODEL, "-o", "gpu.so", "--batch", 1, "--target", "cuda", "--arch", "sm_90", cwd=tmp_path
    ).done()
    assert "verification: none made" in printed
    cli("run", "gpu.so", "--random", 0, cwd=tmp_path).failed(7, "gpu.so", "sm_90", "driver")
    cli("verify", MODEL, "gpu.so", cwd=tmp_path).failed(7, "gpu.so", "sm_90", "driver")
