"""The C++ example: built from its Makefile, run as a user would, compared with Python; what is bad ends in one line."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

import tvm_sparse
from tests.network.onnx_models import conv, model, tensor, weights
from tests.test_tvm_support import needs_cuda, without_driver
from tvm_sparse.deploy import read_metadata
from tvm_sparse.deploy.trailer import append_trailer
from tvm_sparse.prune import magnitude_mask

SOURCE = Path(__file__).resolve().parents[2] / "examples" / "cpp"
pytestmark = pytest.mark.skipif(
    shutil.which("make") is None or shutil.which("g++") is None, reason="no make or C++ compiler here"
)
X = np.random.default_rng(1).standard_normal((2, 3, 9, 11)).astype(np.float32)
BIAS = np.random.default_rng(2).standard_normal((8, 1, 1)).astype(np.float32)
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cpp")
    for name in ("Makefile", "run_network.cpp", "npy.h"):
        shutil.copy(SOURCE / name, folder)
    flags = "CXXFLAGS=-O1 -Wall -Wextra -Werror"
    made = subprocess.run(
        ["make", f"PYTHON={sys.executable}", flags], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert made.returncode == 0, made.stderr
    return folder / "run_network"


@pytest.fixture
def run(program: Path, tmp_path: Path) -> Run:
    """Run the program in a folder where x.npy and bias.npy fit the library."""
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "bias.npy", BIAS)

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(program), *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    return call


def two_by_two(dtype: np.dtype = X.dtype, batch: int | str = 2) -> tvm_sparse.api.Model:
    """x, bias -> relu(conv(x) + bias) and its mean over pixels."""
    weight = weights(8, 3, 3, 3)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        conv("first", "x", "w", "a", pads=[1] * 4),
        helper.make_node("Add", ["a", "bias"], ["b"]),
        helper.make_node("Relu", ["b"], ["y"]),
        helper.make_node("GlobalAveragePool", ["y"], ["mean"]),
    ]
    inputs = [tensor("x", (batch, *X.shape[1:]), kind), tensor("bias", BIAS.shape, kind)]
    made = model(nodes, {"w": (weight * magnitude_mask(weight, 0.8)).astype(dtype)}, inputs, ("y", "mean"))
    for value in made.graph.output:
        value.type.tensor_type.elem_type = kind
    return made


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("library") / "net.so"
    tvm_sparse.compile(two_by_two(), threads=2).export(path)
    return path


def test_it_computes_what_python_computes(run: Run, library: Path, tmp_path: Path) -> None:
    done = run(library, "x.npy", "bias.npy", "--output", "y.npy", "--output", "mean.npy", "--threads", 1)
    assert (done.returncode, done.stderr) == (0, "")
    expected = tvm_sparse.load(library, threads=1)(X, BIAS)
    for name, array in zip(("y", "mean"), expected, strict=True):
        written = np.load(tmp_path / f"{name}.npy")
        assert written.dtype == array.dtype and np.array_equal(written, array)
    first, y, mean, timing = done.stdout.splitlines()
    metadata = read_metadata(library)
    assert first == f"{library}: 'net' for {metadata.triple} {metadata.mcpu}"
    assert y.startswith("output y: float32 (2, 8, 9, 11), from 0 to ")
    assert y.endswith(f"the largest at {expected[0].argmax()}")
    assert mean.startswith("output mean: float32 (2, 8, 1, 1)")
    assert timing.startswith("10 calls on 1 threads: median ")


def test_plain_bytes_and_a_bare_file_name(run: Run, library: Path, tmp_path: Path) -> None:
    shutil.copy(library, tmp_path / "net.so")
    (tmp_path / "x.bin").write_bytes(X.tobytes())
    done = run("net.so", "x.bin", "bias.npy", "--output", "y.npy", "--repeats", 0)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 3), done.stderr
    assert np.array_equal(np.load(tmp_path / "y.npy"), tvm_sparse.load(library)(X, BIAS)[0])


def test_half_precision(run: Run, tmp_path: Path) -> None:
    tvm_sparse.compile(two_by_two(np.dtype(np.float16)), verify=False).export(tmp_path / "half.so")
    np.save(tmp_path / "x.npy", X.astype(np.float16))
    np.save(tmp_path / "bias.npy", BIAS.astype(np.float16))
    done = run("half.so", "x.npy", "bias.npy", "--output", "y.npy")
    assert done.returncode == 0, done.stderr
    expected = tvm_sparse.load(tmp_path / "half.so")(X.astype(np.float16), BIAS.astype(np.float16))[0]
    written = np.load(tmp_path / "y.npy")
    assert written.dtype == np.float16 and np.array_equal(written, expected)


def test_a_header_that_numpy_wrote_in_its_second_format(run: Run, library: Path, tmp_path: Path) -> None:
    with (tmp_path / "second.npy").open("wb") as file:
        np.lib.format.write_array(file, X, version=(2, 0))
    assert run(library, "second.npy", "bias.npy", "--output", "y.npy").returncode == 0
    assert np.array_equal(np.load(tmp_path / "y.npy"), tvm_sparse.load(library)(X, BIAS)[0])


@pytest.fixture(scope="module")
def batched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that serves 1 to 5 images, compiled for 1, 3 and 5; the bias has no batch."""
    path = tmp_path_factory.mktemp("library") / "batched.so"
    tvm_sparse.compile(two_by_two(batch="n"), batch="1,3,5", threads=2, verify=False).export(path)
    return path


@pytest.mark.parametrize("form", ["npy", "bin"])
@pytest.mark.parametrize("n", range(1, 6))
def test_any_batch_of_a_library_for_several(run: Run, batched: Path, tmp_path: Path, n: int, form: str) -> None:
    x = np.random.default_rng(n).standard_normal((n, *X.shape[1:])).astype(np.float32)
    np.save(tmp_path / "some.npy", x)
    (tmp_path / "some.bin").write_bytes(x.tobytes())
    done = run(batched, f"some.{form}", "bias.npy", "--output", "y.npy", "--output", "mean.npy", "--threads", 1)
    assert done.returncode == 0, done.stderr
    for name, array in zip(("y", "mean"), tvm_sparse.load(batched, threads=1)(x, BIAS), strict=True):
        assert np.array_equal(np.load(tmp_path / f"{name}.npy"), array)


def test_batches_that_are_not_served(run: Run, batched: Path, tmp_path: Path) -> None:
    for n in (0, 6):
        np.save(tmp_path / "some.npy", np.zeros((n, *X.shape[1:]), np.float32))
        _failed(run(batched, "some.npy", "bias.npy"), 4, f"some.npy: has batch {n}, the library serves 1 to 5")
    (tmp_path / "some.bin").write_bytes(bytes(X[0].nbytes * 5 // 2))
    _failed(run(batched, "some.bin", "bias.npy"), 4, "input 'x', float32 (2, 3, 9, 11), has")


BAD_INPUTS = {
    "missing.npy": (None, "missing.npy: cannot be read"),
    "shape.npy": (X[:1], "shape.npy: holds <f4 (1, 3, 9, 11), input 'x' is float32 (2, 3, 9, 11)"),
    "rank.npy": (X[0, 0, 0], "rank.npy: holds <f4 (11), input 'x' is"),
    "dtype.npy": (X.astype(np.float64), "dtype.npy: holds <f8 (2, 3, 9, 11), input 'x' is float32"),
    "order.npy": (np.asfortranarray(X), "order.npy: is in column-major order"),
    "short.bin": (X.tobytes()[:-4], f"short.bin: has {X.nbytes - 4} bytes of data, input 'x', float32 (2, 3, 9, 11)"),
    "cut.npy": (b"\x93NUMPY\x01\x00\xff\x00{'descr'", "cut.npy: is cut short"),
    "other.npy": (b"\x93NUMPY\x01\x00\x04\x00none", "other.npy: its .npy header names no descr"),
    "folder": ("folder", "folder: cannot be read"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_inputs(run: Run, library: Path, tmp_path: Path, name: str) -> None:
    content, message = BAD_INPUTS[name]
    if isinstance(content, np.ndarray):
        np.save(tmp_path / name, content)
    elif isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content:
        (tmp_path / name).mkdir()
    _failed(run(library, name, "bias.npy"), 4, message)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "usage: run_network NET.so"),
        (("net.so", "--threads"), 2, "--threads needs a value"),
        (("net.so", "--threads", "many"), 2, "--threads needs a number"),
        (("net.so", "--threads", "0"), 2, "--threads needs a number"),
        (("net.so", "--speed", "9"), 2, "unknown option --speed"),
        (("nowhere.so",), 7, "nowhere.so: cannot be read"),
        (("x.npy",), 7, "x.npy: is no library of tvm-sparse, or was cut short"),
        (("net.so", "x.npy"), 4, "takes x float32 (2, 3, 9, 11), bias float32 (8, 1, 1) and gives 2 outputs"),
        (("net.so", "x.npy", "bias.npy", "x.npy"), 4, "name a file for each input"),
        (("net.so", "x.npy", "bias.npy", "--device", "cuda"), 4, "was compiled for cpu, not for cuda"),
        (("net.so", "x.npy", "bias.npy", "--device", "cpu:0"), 4, "was compiled for cpu, not for cpu:0"),
        (("net.so", "x.npy", "bias.npy", "--threads", "100000"), 4, "this process may use 1 to "),
        (("net.so", "x.npy", "bias.npy", "--output", "no/y.npy"), 8, "no/y.npy: cannot be written"),
    ],
)
def test_bad_calls(
    run: Run, library: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    shutil.copy(library, tmp_path / "net.so")
    _failed(run(*arguments), code, message)


def test_a_damaged_library(run: Run, library: Path, tmp_path: Path) -> None:
    content = library.read_bytes()
    (tmp_path / "cut.so").write_bytes(content[:-100])
    _failed(run("cut.so", "x.npy", "bias.npy"), 7, "cut.so: is no library of tvm-sparse, or was cut short")
    (tmp_path / "hole.so").write_bytes(content[:1000] + content[2000:])
    _failed(run("hole.so", "x.npy", "bias.npy"), 7, "hole.so: is damaged")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"triple": "riscv64-linux-gnu"}, "was compiled for riscv64 CPUs, this one is"),
        ({"mcpu": "tomorrow", "cpu_features": ("avx1024",)}, "was compiled for tomorrow, this CPU lacks avx1024"),
    ],
)
def test_a_library_for_another_machine(
    run: Run, library: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    (tmp_path / "other.so").write_bytes(b"no code")
    append_trailer(tmp_path / "other.so", dataclasses.replace(read_metadata(library), **changes))  # type: ignore[arg-type]
    _failed(run("other.so", "x.npy", "bias.npy"), 7, message)


@needs_cuda
@without_driver
def test_a_cuda_library_where_no_gpu_is(run: Run, tmp_path: Path) -> None:
    tvm_sparse.compile(two_by_two(), target="cuda", arch="sm_90").export(tmp_path / "gpu.so")
    _failed(run("gpu.so", "x.npy", "bias.npy"), 7, "TVM's runtime cannot be loaded: libcuda")


@pytest.mark.gpu
@needs_cuda
def test_a_cuda_library_on_the_gpu(run: Run, tmp_path: Path) -> None:
    tvm_sparse.compile(two_by_two(), target="cuda", arch=["sm_80", "sm_90"]).export(tmp_path / "gpu.so")
    done = run("gpu.so", "x.npy", "bias.npy", "--output", "y.npy")
    assert done.returncode == 0, done.stderr
    assert "calls on the GPU" in done.stdout
    assert np.array_equal(np.load(tmp_path / "y.npy"), tvm_sparse.load(tmp_path / "gpu.so")(X, BIAS)[0])
    _failed(run("gpu.so", "x.npy", "bias.npy", "--device", "cuda:99"), 4, "there is no GPU 99 here")


def _failed(ended: subprocess.CompletedProcess[str], code: int, message: str) -> None:
    """One line on stderr that says what is wrong."""
    assert (ended.returncode, ended.stderr.count("\n")) == (code, 1), ended.stderr
    assert ended.stderr.startswith("error: ") and message in ended.stderr
