"""The whole driver on a CPU, with a small network in the place of the large ones: compile, measure, record, resume."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.gpu_layers import bounds
from benchmarks.gpu_networks import __main__ as cli
from benchmarks.gpu_networks import cases
from benchmarks.gpu_networks.cases import Case, select_cases
from tests.benchmarks.gpu_layers.stand_ins import H200
from tvm_sparse.errors import InputError

pytest.importorskip("torch")
DIGITS = Path(__file__).resolve().parents[3] / "examples" / "digits" / "digits_pruned95.onnx"


@pytest.fixture
def on_cpu(monkeypatch, tmp_path):
    """The digits network for every case and this machine's CPU for the GPU; the command line of a run without compilers
    in processes of their own, which would not see the stand-ins."""

    class OnTheCpu(bounds.Device):
        arch = "llvm"

    def small(self: Case, seed: int, folder: Path | None = None) -> onnx.ModelProto:
        model = onnx.load(DIGITS)
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = self.batch
        return model

    monkeypatch.setattr(bounds, "this_gpu", lambda: OnTheCpu(**vars(H200)))
    monkeypatch.setattr(cases.Case, "model", small)
    monkeypatch.setattr("benchmarks.gpu_layers.pool.CompilerPool", InProcess)
    monkeypatch.setattr("benchmarks.gpu_networks.measure.CALLS", 20)
    monkeypatch.setattr("benchmarks.gpu_networks.measure.THREAD_CALLS", 3)
    return ["--json", str(tmp_path / "r.json"), "--libraries", str(tmp_path / "k"), "--rounds", "2", "--commit", "c0f"]


class InProcess:
    """Stands in for the pool of compilers."""

    def __init__(self, folder, jobs, limit_s, compile_job):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.compile_job = folder, compile_job

    def submit(self, job):
        from concurrent.futures import Future

        from benchmarks.gpu_layers.build import built
        from benchmarks.gpu_layers.pool import BuildError

        future = Future()
        if job.case.batch == 128:
            future.set_exception(BuildError("no such luck"))
        else:
            future.set_result(built(self.folder, job.key) or self.compile_job(job, self.folder))
        return future

    def close(self):
        pass


def test_from_the_command_line_to_the_record(on_cpu, tmp_path, capsys):
    command = ["run", "--networks", "resnet50,alexnet", "--batch", "1", "--torch-compile", "none", *on_cpu]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "3 measured" and "float32 channels_last eager" in printed[-2]
    record = json.loads((tmp_path / "r.json").read_text())
    first, second, third = record["cases"]
    assert (first["network"], second["network"], first["batch"]) == ("resnet50", "alexnet", 1)
    assert (second["weights"], third["weights"]) == ("seeded", "seeded, linear layers too")
    assert 0 < first["relative_error"] < 1e-5 and 0 < first["onnxruntime_error"] < 1e-5
    assert first["layers"].get("sparse", 0) + first["layers"].get("dense", 0) == 3
    assert [peer["layout"] for peer in first["peers"]] == ["NCHW", "channels_last"]
    assert all(peer["speed_up"] > 0 and peer["time"]["median_us"] > 0 for peer in first["peers"])
    assert first["endurance"]["wrong_in_threads"] == 0 and "endurance" not in second
    assert record["runs"][0]["environment"]["commit"] == "c0f" and record["runs"][0]["log"]
    before = (tmp_path / "r.json").read_text()
    assert cli.main([*command, "--resume"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "3 left out"
    assert (tmp_path / "r.json").read_text() == before


def test_what_is_wrong_or_missing_is_told(on_cpu, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.gpu_networks.measure.onnxruntime_error", lambda *_: 0.5)
    assert cli.main(["run", "--networks", "resnet50", "--batch", "1,128", "--torch-compile", "none", *on_cpu]) == 1
    printed = capsys.readouterr().out
    assert "WRONG, " in printed and "compile: no such luck" in printed
    assert printed.splitlines()[-1] == "1 wrong; 1 without a time"


def test_a_library_that_cannot_run_costs_one_case(on_cpu, capsys, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("an illegal memory access\nwas encountered")

    monkeypatch.setattr("benchmarks.gpu_networks.measure.onnxruntime_error", broken)
    assert cli.main(["run", "--networks", "resnet50", "--batch", "1", "--torch-compile", "none", *on_cpu]) == 1
    assert "run: RuntimeError: an illegal memory access was encountered" in capsys.readouterr().out


def test_a_lost_gpu_ends_the_process_and_its_case_is_not_run_again(on_cpu, capsys, monkeypatch):
    def deadly(*_, **__):
        raise RuntimeError("an illegal memory access was encountered")

    command = ["run", "--networks", "resnet50", "--batch", "1,8", "--torch-compile", "none", *on_cpu]
    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.gpu_networks.measure.onnxruntime_error", deadly)
        patch.setattr("benchmarks.gpu_networks.run.device_lost", lambda: True)
        assert cli.main(command) == 3
    assert "resnet50 n1 0.9 seeded float32: the GPU was lost" in capsys.readouterr().out.splitlines()[-1]
    assert cli.main([*command, "--resume"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 left out; 1 measured"


def test_the_time_budget_stops_between_cases(on_cpu, capsys):
    assert cli.main(["run", "--networks", "resnet50", "--batch", "1", "--time-budget", "0", *on_cpu]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 not measured: out of time"


def test_without_a_gpu_run_says_so_and_ends_well(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(bounds, "this_gpu", lambda: None)
    assert cli.main(["run", "--json", str(tmp_path / "r.json")]) == 0
    assert "no NVIDIA GPU" in capsys.readouterr().out and not (tmp_path / "r.json").exists()


def test_presets_and_choices():
    assert len(select_cases("quick")) == 8 + 2 and len(select_cases("all")) == 15 + 6
    assert select_cases("quick", networks_like=["vgg*"], batches=[8], sparsities=[0.95]) == [
        Case("vgg16", 8, 0.95),
        Case("vgg16", 8, 0.95, "seeded, linear layers too"),
    ]
    published = select_cases("quick", networks_like=["mobile*"], batches=[1], published=["mobilenetv1"])
    assert [case.weights for case in published] == ["seeded", "published"]
    assert cases.chosen(Case("resnet50", 32), ["resnet50-3*"]) and not cases.chosen(Case("resnet50", 1), ["none"])
    with pytest.raises(InputError, match="there are resnet50"):
        select_cases("quick", networks_like=["nothing"])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["prepare", "--networks", "nothing"], "no network is called nothing"),
        (["prepare", "--weights", "/"], "no publ"),
    ],
)
def test_bad_input_is_one_line(arguments, complaint, capsys):
    assert cli.main(arguments) != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and complaint in line


@pytest.mark.parametrize(
    ("job", "options"),
    [
        (("llvm", 0, "none"), {"target": "llvm", "log": None}),
        (("sm_90", 0, "shipped"), {"target": "cuda", "arch": "sm_90", "log": "shipped"}),
        (("sm_90", 0, "a/log"), {"target": "cuda", "arch": "sm_90", "log": "a/log", "precision": "float16"}),
    ],
)
def test_what_is_compiled_is_what_the_case_says(job, options, tmp_path, monkeypatch):
    import tvm_sparse
    from benchmarks.gpu_networks.build import Job, compile_network

    class Compiled:
        def export(self, path):
            path.write_bytes(b"")

    seen = []
    monkeypatch.setattr(tvm_sparse, "compile", lambda model, **given: seen.append(given) or Compiled())
    monkeypatch.setattr(Job, "key", "name")
    monkeypatch.setattr(cases.Case, "model", lambda self, seed, folder: None)
    built = compile_network(Job(Case("alexnet", 1, precision=options.get("precision", "float32")), *job), tmp_path)
    assert seen == [{**options, "verify": False}] and built.library.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["name.json", "name.so"]


def test_a_library_has_a_name_of_what_it_is_made_of(tmp_path):
    from benchmarks.gpu_networks.build import Job

    job = Job(Case("alexnet", 1), "sm_90", 0, "none")
    others = [
        Job(Case("alexnet", 2), "sm_90", 0, "none"),
        Job(Case("alexnet", 1), "sm_80", 0, "none"),
        Job(Case("alexnet", 1), "sm_90", 1, "none"),
        Job(Case("alexnet", 1), "sm_90", 0, str(tmp_path)),
    ]
    (tmp_path / "a.jsonl").write_text("{}\n")
    keys = {other.key for other in (job, *others)}
    assert len(keys) == 5
    (tmp_path / "a.jsonl").write_text("{} \n")
    assert others[-1].key not in keys
    assert np.all([len(key) == 20 for key in keys])
