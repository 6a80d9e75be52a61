"""Each command hands its options to the Python call below it and prints what comes back."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tvm_sparse.cli import main
from tvm_sparse.cli.run_library import read_arrays, write_arrays
from tvm_sparse.deploy import BatchSizes, Metadata
from tvm_sparse.errors import InputError

from .conftest import Calls


@dataclass(frozen=True)
class Decision:
    name: str
    decision: str
    reason: str
    workload: str = "64x64x3x3"
    sparsity: float = 0.9
    template: str = "cpu_vector"
    tuned: str = "exact"


@dataclass(frozen=True)
class Summary:
    """What `inspect` is told of a layer; one whose filter is not known has no counts."""

    name: str = "conv1"
    filter_shape: tuple[int, ...] = (64, 3, 7, 7)
    output_shape: tuple[int, ...] = (1, 64, 8, 8)
    stride: tuple[int, ...] = (2, 1)
    padding: tuple[int, ...] = (0, 1, 2, 3)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1
    nnz: int | None = None
    sparsity: float | None = None
    macs_dense: int = 602112
    macs_sparse: int | None = None
    row_min: int | None = 1
    row_median: float | None = 2.5
    row_max: int | None = 4
    empty_rows: int | None = 0
    eligible: bool = False
    reason: str = "computed at run time"


@dataclass(frozen=True)
class Spec:
    name: str
    shape: tuple[int, ...] = (1, 2)
    dtype: str = "float32"


@dataclass(frozen=True)
class Verification:
    reference: str = "onnxruntime"
    relative_error: dict[str, float] = field(default_factory=lambda: {"y": 2e-6})
    constant: tuple[str, ...] = ()
    tolerance: float = 1e-4
    batches: tuple[int, ...] = ()

    @property
    def passed(self) -> bool:
        return all(error <= self.tolerance for error in self.relative_error.values())

    def describe(self) -> str:
        return f"output y differs by {self.relative_error['y']:.3g}"


@dataclass(frozen=True)
class Result:
    median_us: float = 12.5
    p95_us: float = 20.0


@dataclass(frozen=True)
class Pruned:
    convs: tuple[Decision, ...] = (Decision("conv1", "pruned", "–"),)
    weights: int = 10_000
    before: float = 0.25
    after: float = 0.9


class Network:
    """A compiled or loaded network, as far as the commands look at it."""

    verification: Verification | None = Verification()
    dense_bytes = 4_000_000
    sparse_bytes = 1_000_000

    outputs = (Spec("y"),)

    def __init__(self, batch: BatchSizes | None = None) -> None:
        self.seen: list[dict[str, np.ndarray]] = []
        self.metadata = Metadata("net", (), (), "llvm", batch=batch)

    def report(self, batch: int | None = None) -> list[Decision]:
        layers = [Decision("conv1", "dense", "first layer"), Decision("conv2", "sparse", "90 % zeros")]
        return layers if batch or self.metadata.batch is None else layers * len(self.metadata.batch.buckets)

    def export(self, path: Path) -> Result:
        Path(path).write_bytes(b"12345")
        return Result()

    def random_inputs(self, seed: int, batch: int | None) -> dict[str, np.ndarray]:
        return {"x": np.random.default_rng(seed).random((batch or 1, 2), np.float32)}

    def __call__(self, **arrays: np.ndarray) -> np.ndarray:
        self.seen.append(arrays)
        return arrays["x"] * 2


def test_inspect(calls: Calls, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls.answers["inspect"] = [Summary()]
    options = ["--batch", "2", "--shape", "a:0=1x3x8x8", "--shape", "b=1,2"]
    assert main(["inspect", str(model), *options]) == 0
    assert calls.last == ("inspect", (model,), {"batch": 2, "shapes": {"a:0": (1, 3, 8, 8), "b": (1, 2)}})
    row = capsys.readouterr().out.splitlines()[1]
    assert row.startswith("conv1") and row.rstrip().endswith("no        computed at run time")
    assert all(text in row for text in ("64×3×7×7", "2×1", "0×1×2×3", "602,112", "1/2.5/4", "–"))
    assert main(["inspect", str(model), "--json"]) == 0
    assert calls.last == ("inspect", (model,), {"batch": None, "shapes": None})
    (layer,) = json.loads(capsys.readouterr().out)
    assert layer["filter_shape"] == [64, 3, 7, 7] and layer["nnz"] is None and layer["eligible"] is False


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {"pattern": "unstructured", "scope": "layer", "skip": (), "linear": False}),
        (
            ["--global", "--pattern", "vector:4", "--skip", "conv1, conv2", "--linear"],
            {"pattern": "vector:4", "scope": "global", "skip": ("conv1", "conv2"), "linear": True},
        ),
    ],
)
def test_prune(
    options: list[str], expected: dict[str, Any], calls: Calls, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = model.with_name("out.onnx")
    output.write_bytes(b"123")
    calls.answers["prune_file"] = Pruned()
    assert main(["prune", str(model), "-o", str(output), "--sparsity", "0.9", *options]) == 0
    assert calls.last == ("prune_file", (model, output), {"sparsity": 0.9, **expected})
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ["conv1", "pruned"]
    assert lines[2:5] == ["weights: 10,000", "sparsity before: 0.25", "sparsity after: 0.9"] and "3 bytes" in lines[5]


def test_compile(calls: Calls, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def compile(_: Path, *, progress: Any, **__: Any) -> Network:
        progress("import", 0.0)
        return Network()

    calls.answers["compile"] = compile
    output, report = model.with_name("net.so"), model.with_name("report.json")
    options = ["--target", "cuda", "--arch", "sm_80,sm_90", "--sparse", "always", "--batch", "1", "--threads", "2"]
    options += ["--no-cuda-graph", "--overlap", "--no-verify", "--json", str(report)]
    assert main(["compile", str(model), "-o", str(output), *options]) == 0
    _, args, kwargs = calls.last
    del kwargs["progress"]
    assert args == (model,)
    assert kwargs == {
        "target": "cuda",
        "arch": "sm_80,sm_90",
        "mcpu": None,
        "sparse": "always",
        "batch": 1,
        "shapes": None,
        "threads": 2,
        "log": "shipped",
        "cuda_graph": False,
        "overlap": True,
        "precision": "float32",
        "verify": False,
    }
    captured = capsys.readouterr()
    assert captured.err == "import …\nexporting …\n"
    assert "tuned: 2 as measured" in captured.out
    assert "sparse convolutions: 1 of 2" in captured.out and "verification: output y differs by 2e-06" in captured.out
    assert "4,000,000 bytes" in captured.out and "1,000,000 bytes" in captured.out and "5 bytes" in captured.out
    written = json.loads(report.read_text())
    assert written["layers"][1]["decision"] == "sparse" and written["verification"]["passed"] is True
    assert written["batch"] is None


@pytest.mark.parametrize("batch", ["1-4", "1,2,4"])
def test_compile_for_several_batches(batch: str, calls: Calls, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table has the layers of the largest, the JSON file those of all."""
    calls.answers["compile"] = lambda *_, **__: Network(BatchSizes((1, 2, 4), ("x",)))
    report = model.with_name("report.json")
    options = ["--batch", batch, "--json", str(report)]
    assert main(["compile", str(model), "-o", str(model.with_name("net.so")), *options]) == 0
    assert calls.last[2]["batch"] == batch
    out = capsys.readouterr().out
    assert "batches: 1 to 4, compiled for 1, 2, 4" in out and "sparse convolutions: 1 of 2" in out
    written = json.loads(report.read_text())
    assert len(written["layers"]) == 6 and written["batch"] == {"buckets": [1, 2, 4], "inputs": ["x"]}


@pytest.mark.parametrize(("log", "expected"), [("none", None), ("my-log", "my-log")])
def test_compile_takes_a_log(log: str, expected: str | None, calls: Calls, model: Path) -> None:
    calls.answers["compile"] = lambda *_, **__: Network()
    assert main(["compile", str(model), "-o", str(model.with_name("net.so")), "--log", log]) == 0
    assert calls.last[2]["log"] == expected


def test_compile_prints_only_json_where_asked(calls: Calls, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls.answers["compile"] = lambda *_, **__: Network()
    assert main(["compile", str(model), "-o", str(model.with_name("net.so")), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["sparse_bytes"] == 1_000_000
    assert calls.last[2]["verify"] is True and calls.last[2]["target"] == "llvm" and calls.last[2]["arch"] is None


def test_compile_says_that_verification_was_skipped(
    calls: Calls, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Network, "verification", None)
    calls.answers["compile"] = lambda *_, **__: Network()
    assert main(["compile", str(model), "-o", str(model.with_name("net.so")), "--no-verify"]) == 0
    assert "verification: none made" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["prune", "net.onnx", "-o", "{}", "--sparsity", "0.5"],
        ["compile", "net.onnx", "-o", "{}"],
        ["compile", "net.onnx", "-o", "net.so", "--json", "{}"],
        ["run", "net.so", "--random", "0", "--output", "{}"],
        ["bench", "net.so", "--json", "{}"],
    ],
    ids=" ".join,
)
def test_an_unwritable_output_stops_before_the_work(
    arguments: list[str],
    calls: Calls,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([text.format("missing/out") for text in arguments]) == 8
    err = capsys.readouterr().err
    assert err.startswith("error: missing/out: cannot write") and err.count("\n") == 1
    assert calls.seen == [] and list(tmp_path.iterdir()) == []


def test_run_on_random_input(calls: Calls, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = Network()
    calls.answers["load"] = lambda *_, **__: network
    library, output = model.with_name("net.so"), model.with_name("y.npz")
    assert main(["run", str(library), "--random", "3", "-o", str(output), "--threads", "2"]) == 0
    assert calls.last == ("load", (library,), {"threads": 2})
    drawn = np.load(output)["y"]
    np.testing.assert_array_equal(drawn, network.seen[0]["x"] * 2)
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["y", "1×2", "float32"]
    for seed, same in [("3", True), ("4", False)]:
        assert main(["run", str(library), "--random", seed, "-o", str(output)]) == 0
        assert np.array_equal(np.load(output)["y"], drawn) is same


def test_run_draws_the_batch_asked_for(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    network = Network()
    calls.answers["load"] = lambda *_, **__: network
    assert main(["run", "net.so", "--random", "3", "--batch", "5"]) == 0
    assert network.seen[0]["x"].shape == (5, 2)
    assert main(["run", "net.so", "--input", "x.npz", "--batch", "5"]) == 2
    assert "belongs to --random" in capsys.readouterr().err


def test_run_on_given_input(calls: Calls, model: Path) -> None:
    network = Network()
    calls.answers["load"] = lambda *_, **__: network
    given = model.with_name("x.npz")
    np.savez(given, x=np.arange(2))
    assert main(["run", "net.so", "--input", str(given)]) == 0
    np.testing.assert_array_equal(network.seen[0]["x"], np.arange(2))


def test_arrays_of_any_name_survive(tmp_path: Path) -> None:
    arrays = {"file": np.arange(3), "a/b:0": np.zeros((0, 2), np.float16), "allow_pickle": np.array(True)}
    write_arrays(tmp_path / "y.npz", arrays)
    found = read_arrays(tmp_path / "y.npz")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 not a zip", b"text", "array", "object"])
def test_run_refuses_a_bad_input_file(
    content: bytes | str | None, calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls.answers["load"] = lambda *_, **__: Network()
    path = tmp_path / "x.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "array":
        np.save(path.with_suffix(".npy"), np.arange(2))
        path.with_suffix(".npy").rename(path)
    elif content == "object":
        np.savez(path, x=np.array([{}], dtype=object))
    assert main(["run", "net.so", "--input", str(path)]) == InputError.exit_code
    err = capsys.readouterr().err
    assert err.startswith(f"error: {path}: ") and err.count("\n") == 1


def test_verify(calls: Calls, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls.answers["verify"] = Verification()
    assert main(["verify", str(model), "net.so", "--tolerance", "1e-3", "--seed", "7"]) == 0
    assert calls.last == ("verify", (model, Path("net.so")), {"tolerance": 1e-3, "seed": 7})
    assert "passed: yes" in capsys.readouterr().out


@pytest.mark.parametrize("error", [0.5, float("nan")])
def test_verify_fails_with_6(error: float, calls: Calls, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls.answers["verify"] = Verification(relative_error={"y": error, "z": 0.0})
    assert main(["verify", str(model), "net.so", "--json"]) == 6
    captured = capsys.readouterr()
    assert json.loads(captured.out)["passed"] is False
    assert captured.err.startswith("error: net.so: output y differs") and f"{error:.3g}" in captured.err


def test_bench(calls: Calls, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls.answers |= {"load": lambda *_, **__: "network", "bench": Result()}
    report = model.with_name("bench.json")
    options = ["--threads", "2", "--repeats", "5", "--warmup", "1", "--batch", "7", "--json", str(report)]
    assert main(["bench", "net.so", *options]) == 0
    assert calls.seen[0] == ("load", (Path("net.so"),), {"threads": 2})
    assert calls.seen[1] == ("bench", ("network",), {"repeats": 5, "warmup": 1, "seed": 0, "batch": 7, "bound": False})
    assert "median us: 12.5" in capsys.readouterr().out
    assert json.loads(report.read_text()) == {"median_us": 12.5, "p95_us": 20.0}


@dataclass(frozen=True)
class Kernel:
    name: str = "conv1"
    decision: str = "sparse"
    template: str = "cuda_pixel"
    time_us: float = 12.5
    share: float = 0.25
    bound_share: float | None = 0.5
    reason: str = "90% zeros"


@dataclass(frozen=True)
class Profile:
    model: str = "net"
    device: str = "cuda:0"
    sum_us: float = 50.0
    call_us: float = 60.0
    kernels: tuple[Kernel, ...] = (Kernel(), Kernel("max pool2d", "", "", 37.5, 0.75, None, ""))


def test_bench_profile(calls: Calls, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls.answers |= {"load": lambda *_, **__: "network", "profile": Profile()}
    report = model.with_name("profile.json")
    assert main(["bench", "net.so", "--profile", "--batch", "7", "--seed", "3", "--json", str(report)]) == 0
    assert calls.seen[1] == ("profile", ("network",), {"batch": 7, "seed": 3})
    header, first, second, *rest = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["layer", "runs", "template", "µs"]
    assert first.split() == ["conv1", "sparse", "cuda_pixel", "12.5", "25.0%", "50%", "90%", "zeros"]
    assert second.split() == ["max", "pool2d", "37.5", "75.0%", "–"]
    assert rest == ["model: net", "device: cuda:0", "kernels, µs: 50", "call, µs: 60"]
    assert json.loads(report.read_text())["kernels"][0]["bound_share"] == 0.5


def test_bench_of_bound_calls(calls: Calls) -> None:
    calls.answers |= {"load": lambda *_, **__: "network", "bench": Result()}
    assert main(["bench", "net.so", "--bound"]) == 0
    assert calls.seen[1][2]["bound"] is True
    for other in (["--profile"], ["--devices", "all"]):
        assert main(["bench", "net.so", "--bound", *other]) == 2


@pytest.mark.parametrize("other", [["--devices", "all"], ["--compare", "torch", "--model", "net.onnx"]])
def test_a_profile_is_not_something_else_too(other: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "net.so", "--profile", *other]) == 2
    assert "does not go together with" in capsys.readouterr().err


def test_collect_env(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    calls.answers["collect_env"] = {"python": "3.11", "packages": {"numpy": "2.0"}, "gpus": []}
    assert main(["collect-env"]) == 0
    assert capsys.readouterr().out.splitlines() == ["python: 3.11", "packages:", "  numpy: 2.0", "gpus: none"]
    assert main(["collect-env", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gpus"] == []
