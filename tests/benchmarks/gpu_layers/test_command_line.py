"""The commands, and that pages render from what `run` really writes."""

from __future__ import annotations

import json

import pytest

from benchmarks.gpu_layers import __main__ as cli
from benchmarks.gpu_layers import bounds, graph_timer, measure, tables
from benchmarks.gpu_layers.report import Report
from benchmarks.render import RESULTS
from tests.benchmarks.gpu_layers.stand_ins import H200, FakeTimer
from tvm_sparse.deploy import environment

CASES = ["--preset", "all", "--layers", "goog5b5r", "--batch", "1"]


def test_without_a_gpu_run_says_so_and_ends_well(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(bounds, "this_gpu", lambda: None)
    assert cli.main(["run", "--json", str(tmp_path / "r.json")]) == 0
    assert "no NVIDIA GPU" in capsys.readouterr().out and not (tmp_path / "r.json").exists()


def test_layers_are_listed(capsys):
    assert cli.main(["layers"]) == 0
    assert "r50_56_3        n1 64x56x56 -> 64 3x3" in capsys.readouterr().out


def test_the_fastest_variants_become_records_of_a_tuning_log(capsys, tmp_path):
    pytest.importorskip("tvm")
    from tvm_sparse.tuning.log_files import read_log

    assert cli.main(["log", str(RESULTS / "gpu_layers.json"), "--into", str(tmp_path), "--keep", "2"]) == 0
    read = read_log(tmp_path)
    assert f"{len(read.records)} records" in capsys.readouterr().out and not read.problems
    assert {(one.site.device, one.site.arch, one.kind) for one in read.records} == {("nvidia-h200", "sm_90", "sparse")}
    (own, other) = (
        one for one in read.records if (one.layer, one.workload.n, one.density) == ("r50_14_3", 1, 0.099999)
    )
    assert own.ok and own.time_us < other.time_us and own.rows.longest == 265


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["prepare", "--layers", "nothing*"], "no case of the preset quick is left"),
        (["prepare", "--preset", "real"], "--weights"),
        (["prepare", "--candidates", "missing.json"], "missing.json"),
        (["prepare", "--weights", "missing"], "no published filters"),
    ],
)
def test_bad_input_is_one_line(arguments, complaint, capsys):
    pytest.importorskip("tvm")
    assert cli.main(arguments) != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and complaint in line


def test_a_run_from_the_command_line_to_the_page(monkeypatch, capsys, tmp_path):
    pytest.importorskip("torch")

    class OnTheCpu(bounds.Device):
        arch = "llvm"

    monkeypatch.setattr(bounds, "this_gpu", lambda: OnTheCpu(**vars(H200)))
    monkeypatch.setattr(graph_timer, "GraphTimer", FakeTimer)
    monkeypatch.setattr(measure, "Bench", lambda device, *rest, bench=measure.Bench: bench("cpu", *rest))
    monkeypatch.setattr("tvm_sparse.tvm_support.enable_cuda", lambda: None)
    monkeypatch.setattr(environment, "_gpus", lambda: ["NVIDIA H200, 580, 9.0"])
    path = tmp_path / "r.json"
    files = ["--json", str(path), "--kernels", str(tmp_path / "k"), "--jobs", "1", "--commit", "c0ffee"]
    command = ["run", *CASES, *files]
    assert cli.main([*command, "--sparsity", "0.9,0.95"]) == 0
    printed = capsys.readouterr().out
    assert "goog5b5r n1 random 0.9 float32:" in printed and "2 measured" in printed
    assert cli.main([*command, "--sparsity", "0.9", "--dtype", "bfloat16", "--templates", "fallback"]) == 0
    assert cli.main([*command, "--sparsity", "0.9", "--resume"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 left out"
    assert len(json.loads(path.read_text())["runs"]) == 1

    report = Report(path, RESULTS / "gpu_escoin.json")
    text = {name: block(report) for name, block in tables.BLOCKS.items()}
    assert "NVIDIA H200, 580, 9.0" in text["gpu-conditions"] and "commit c0ffee" in text["gpu-conditions"]
    assert "goog5b5r (832x7x7 -> 48 1x1)" in text["gpu-all-layers"]
    assert "| goog5b5r | 1 | 90% |" in text["gpu-sixteen-bit"] and text["gpu-troubles"] == "Nothing."
    assert cli.main(["winners", str(path)]) == 0
    assert json.loads(capsys.readouterr().out) == []
