"""Whole tuning sessions of small layers: what they record, how they go on, and that nothing stops them."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.processes import comes_true
from tests.tuning import sabotage
from tests.tuning.small_session import small_layers, small_session
from tvm_sparse.errors import CompileError, InputError, OutputError
from tvm_sparse.tuning import candidates, measuring, metaschedule, tasks
from tvm_sparse.tuning.log_files import LogWriter, read_log
from tvm_sparse.tuning.records import Record
from tvm_sparse.tuning.selection import best
from tvm_sparse.tuning.trials import Budget
from tvm_sparse.workload import ConvWorkload, Epilogue

ROOT = Path(__file__).parents[2]


def by_layer(records: list[Record]) -> dict[str, list[Record]]:
    return {name: [record for record in records if record.layer == name] for name in ("three", "one")}


def repeated(records: list[Record]) -> list[Any]:
    """Points that were measured for a second time; only a verdict's may be, at the end of a session."""
    counts = Counter((record.layer, record.point) for record in records)
    return [point for point, count in counts.items() if count > 1]


def test_a_session_and_its_resumption(tmp_path: Path) -> None:
    first = small_session(tmp_path, 10)
    records = read_log(tmp_path).records
    for tuned, (name, own) in zip(first, by_layer(records).items(), strict=True):
        right = [record for record in own if record.ok]
        assert tuned.name == name and tuned.trials == 10 == len({record.point for record in own})
        fastest = best(own)
        assert own[0].source == "default" and fastest is not None and tuned.best_us == fastest.time_us
        assert {record.kind for record in right} == {"sparse", "dense"} and tuned.gain is not None and tuned.gain >= 1
        assert all(record.error is not None and record.error < 1e-5 and record.repeats for record in right)
        assert all(record.site.threads == 1 and record.versions["apache-tvm"] for record in own)
    began = time.perf_counter()
    assert small_session(tmp_path, 10) == first and len(read_log(tmp_path).records) == len(records)
    idle_s = time.perf_counter() - began
    second = small_session(tmp_path, 14)
    records = read_log(tmp_path).records
    assert [tuned.trials for tuned in second] == [14, 14] and idle_s < 60
    assert all(len(group) <= 14 + 2 * 6 for group in by_layer(records).values())  # confirmed points come again
    assert "guided" in {record.source for record in records}


def test_a_default_that_was_measured_badly_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.LayerTask, "_numbers", itertools.count())
    monkeypatch.setattr(measuring, "measure", sabotage.mistake)
    layers = small_layers()[:1]
    tuned = small_session(tmp_path, 8, layers=layers)[0]
    records = read_log(tmp_path).records
    hot = min((one for one in records if one.ok and not one.confirmed), key=lambda one: one.time_us or 0)
    assert hot.source != "default" and records[0].time_us is not None and records[0].time_us > 100 * (hot.time_us or 0)
    compared = [one for one in records if one.confirmed]
    assert [one.confirmed for one in compared[:1]] == ["default"] and compared[0].point == records[0].point
    assert 2 <= len(compared) <= 5 and {one.confirmed for one in compared[1:]} <= {"yes", "no"}
    assert {(one.timer, one.date) for one in compared} == {("cold", compared[0].date)}
    assert all(one.repeats >= measuring.FEWEST_IN_TURN and (one.error or 0) < 1e-5 for one in compared)
    assert tuned.gain is not None and 1 <= tuned.gain < 10 and tuned.default_us == compared[0].time_us
    assert small_session(tmp_path, 8, layers=layers)[0] == tuned and read_log(tmp_path).records == records


def test_candidates_that_fail_are_counted_named_and_never_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks.LayerTask, "_numbers", itertools.count())
    monkeypatch.setattr(candidates, "make", sabotage.make)
    monkeypatch.setattr(measuring, "measure", sabotage.measure)
    monkeypatch.setattr(metaschedule, "RUN_TIMEOUT_S", 1.5)
    tuned = small_session(tmp_path, 12, layers=small_layers()[:1])[0]
    records = read_log(tmp_path).records
    said = {record.outcome: record.message for record in records if not record.ok}
    assert set(said) == {"timeout", "run_failed", "build_failed", "wrong"}
    messages = {record.message for record in records}
    assert any("SIGSEGV" in text for text in messages) and any("SIGABRT" in text for text in messages)
    assert any("illegal memory access" in text for text in messages)
    assert "RuntimeError: nvcc: error: out of registers" in messages
    assert all(record.time_us is None for record in records if not record.ok)
    assert all((record.error or 0) > 1e-5 for record in records if record.outcome == "wrong")
    assert tuned.trials == 12 and sum(tuned.failed.values()) >= 6 and tuned.best_us is not None


def test_a_full_disk_ends_the_session_and_keeps_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append, written = LogWriter.append, []

    def fill(self: LogWriter, record: Record) -> None:
        if len(written) == 3:
            raise OutputError(f"{self.folder}: cannot write: No space left on device; make room or choose another log")
        append(self, record)
        written.append(record)

    monkeypatch.setattr(LogWriter, "append", fill)
    with pytest.raises(OutputError, match="No space left"):
        small_session(tmp_path, 10)
    assert read_log(tmp_path).records == written and len(written) == 3


def test_a_full_temporary_folder_is_no_fault_of_the_candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "measure", sabotage.fill_disk)
    with pytest.raises(OutputError, match="TMPDIR"):
        small_session(tmp_path, 10)
    assert read_log(tmp_path).records == []


def test_random_search_and_a_time_budget(tmp_path: Path) -> None:
    from tvm_sparse.tuning.devices import setting_for
    from tvm_sparse.tuning.tuner import tune

    setting = replace(setting_for("llvm", threads=1), builders=1, strategy="random", batch=2)
    began = time.perf_counter()
    tune(small_layers(), setting, Budget(seconds=8.0), tmp_path)
    sources = {record.source for record in read_log(tmp_path).records}
    assert sources <= {"default", "seed", "random"} and 5 < time.perf_counter() - began < 60
    with pytest.raises(InputError, match="unknown search"):
        tune(small_layers(), replace(setting, strategy="divination"), Budget(per_layer=1), tmp_path)
    with pytest.raises(InputError, match="no layer to tune"):
        tune([], setting, Budget(per_layer=1), tmp_path)


def test_a_gpu_session_up_to_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the GPU: CUDA candidates are built while others are measured, by a stand-in."""
    from tvm_sparse.tuning import devices
    from tvm_sparse.tuning.measuring import Place
    from tvm_sparse.tuning.tuner import tune
    from tvm_sparse.tvm_support import cuda_compiler

    try:
        cuda_compiler()
    except CompileError:
        pytest.skip("needs a CUDA compiler")
    gpu = devices.gpu_site("NVIDIA H200", "9.0")
    monkeypatch.setattr(devices, "local_gpus", lambda: [gpu, gpu])
    monkeypatch.setattr(measuring, "measure", sabotage.pretend)
    setting = replace(devices.setting_for("cuda"), builders=1, batch=3)
    assert setting.places == (Place("cuda", 0), Place("cuda", 1))
    tuned = tune(small_layers()[:1], setting, Budget(per_layer=7), tmp_path)[0]
    records = read_log(tmp_path / "nvidia-h200").records
    assert tuned.trials == 7 == len(records)
    assert {record.outcome for record in records} == {"ok"}, [record.message for record in records]
    assert len({record.template for record in records}) > 1
    assert {(record.workload.n, record.timer) for record in records} == {(1, "overlap")}


@pytest.mark.parametrize(("n", "arch", "dependent"), [(1, "sm_90", True), (2, "sm_90", False), (1, "sm_80", False)])
def test_candidates_overlap_where_a_network_does(n: int, arch: str, dependent: bool, tmp_path: Path) -> None:
    from tvm_sparse.schedules import template
    from tvm_sparse.tvm_support import cuda_compiler, cuda_target

    try:
        cuda_compiler()
    except CompileError:
        pytest.skip("needs a CUDA compiler")
    workload = ConvWorkload(n, 8, 9, 9, 16, 3, 3, epilogue=Epilogue(bias=True, residual=True))
    target, files, rng = cuda_target(arch), str(tmp_path / "one"), np.random.default_rng(0)
    weight = rng.standard_normal(workload.filter_shape) * (rng.random(workload.filter_shape) < 0.1)
    np.save(tmp_path / "weight.npy", weight.astype(np.float32))
    knobs = template("cuda_pixel").default(workload, 0.1, target)
    kind, refusal = candidates.make(files, str(tmp_path), workload, target, (arch,), "cuda_pixel", knobs)
    assert (kind, refusal) == ("sparse", "")
    assert (b"tirx.use_programtic_dependent_launch" in (tmp_path / "one.so").read_bytes()) == dependent


def start(log: Path, trials: int, told: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.tuning.small_session", str(log), str(trials), str(told)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)


def lines(told: Path) -> list[str]:
    return told.read_text().splitlines() if told.exists() else []


def kill_again_and_again(log: Path, told: Path, kills: int, seed: int) -> None:
    """Kill sessions at random moments; what was told is in the log after each, and no trial is made twice."""
    import random

    rng = random.Random(seed)
    for number in range(kills):
        session = start(log, 400, told)
        before = len(lines(told))
        while session.poll() is None and len(lines(told)) == before:
            time.sleep(0.01)
        time.sleep(rng.random() * 1.0)
        assert session.poll() is None
        session.kill()
        session.wait()
        read = read_log(log)
        assert len(read.problems) <= number + 1  # at most the torn line of each kill
        found = {f"{record.layer} {record.point}" for record in read.records}
        assert set(lines(told)) <= found
        assert repeated(read.records) == []


def test_kills_lose_nothing(tmp_path: Path) -> None:
    kill_again_and_again(tmp_path / "log", tmp_path / "told", 2, 0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fifty_kills_lose_nothing(tmp_path: Path) -> None:
    kill_again_and_again(tmp_path / "log", tmp_path / "told", 50, 1)


def test_ctrl_c(tmp_path: Path) -> None:
    told = tmp_path / "told"
    session = start(tmp_path / "log", 400, told)
    while session.poll() is None and len(lines(told)) < 3:
        time.sleep(0.01)
    children = Path(f"/proc/{session.pid}/task/{session.pid}/children").read_text().split()
    session.send_signal(signal.SIGINT)
    assert session.wait(30) == -signal.SIGINT  # Python's own end of an interrupted program
    assert {f"{record.layer} {record.point}" for record in read_log(tmp_path / "log").records} >= set(lines(told))
    assert comes_true(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_memory_is_steady_over_2000_trials(tmp_path: Path) -> None:
    sizes: list[int] = []

    def told(tally: Any) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        sizes.append(pages * os.sysconf("SC_PAGE_SIZE"))

    small_session(tmp_path, 1000, told)
    after = sizes[len(sizes) // 4]
    assert max(sizes[len(sizes) // 4 :]) < after + 150e6
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < 1.5e9
