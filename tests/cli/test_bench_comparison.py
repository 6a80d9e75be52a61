"""`bench --compare`: a table below the times of the library alone, and the same as JSON."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

import tvm_sparse
from tvm_sparse.cli import main
from tvm_sparse.cli.bench import _rows
from tvm_sparse.peers.comparison import CallTime, Comparison

DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits" / "digits_pruned95.onnx"


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("bench") / "digits.so"
    tvm_sparse.compile(DIGITS, batch=2, threads=1, verify=False).export(path)
    return str(path)


def test_a_table_follows(library, capsys):
    command = ["bench", library, "--compare", "onnxruntime", "--model", str(DIGITS), "--rounds", "2", "--threads", "1"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    head = next(number for number, line in enumerate(lines) if "µs a call" in line)
    assert any(line.startswith("median us: ") for line in lines[:head])
    assert lines[head + 1].startswith("tvm-sparse") and lines[head + 2].startswith("onnxruntime")
    assert lines[head + 2].split()[-1].endswith("–"), "it is the reference itself"
    assert "read the model" in err


def test_json_holds_both(library, capsys):
    pytest.importorskip("torch")
    command = ["bench", library, "--compare", "torch", "--model", str(DIGITS), "--no-torch-compile", "--rounds", "2"]
    assert main([*command, "--json", "-"]) == 0
    value = json.loads(capsys.readouterr().out)
    comparison = value["comparison"]
    assert value["median_us"] > 0 and comparison["ours"]["median_us"] > 0
    assert [peer["layout"] for peer in comparison["peers"]] == ["NCHW", "channels_last"]
    assert comparison["relative_error"] < 1e-5


def test_a_gpus_calls_are_bound_and_unbound():
    time = CallTime(10.0, 9.0, 11.0, 12.0, 3.0)
    found = Comparison("net", "cuda:0", None, 2, "torch", time, dataclasses.replace(time, median_us=20.0), 1e-7, (), {})
    rows = [{name: row[name] for name in ("", "how", "µs a call", "error")} for row in _rows(found)]
    assert rows == [
        {"": "tvm-sparse", "how": "bound", "µs a call": 10.0, "error": 1e-7},
        {"": "tvm-sparse", "how": "", "µs a call": 20.0, "error": "–"},
    ]


@pytest.mark.parametrize(
    ("options", "complaint", "code"),
    [
        (["--compare", "torch"], "--compare and --model go together", 2),
        (["--model", str(DIGITS)], "--compare and --model go together", 2),
        (["--compare", "caffe", "--model", str(DIGITS)], "choose one of torch, onnxruntime", 2),
        (["--compare", "onnxruntime", "--model", "missing.onnx"], "missing.onnx: no such file", 3),
        (["--compare", "onnxruntime", "--model", "missing.pt2"], "onnxruntime runs .onnx models only", 4),
    ],
)
def test_bad_input(library, options, complaint, code, capsys):
    assert main(["bench", library, *options]) == code
    assert complaint in " ".join(capsys.readouterr().err.split())
