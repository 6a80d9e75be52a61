"""The whole driver on a CPU: compilers in processes, checks, the record, resuming; only the times are made up."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.gpu_layers.build import build
from benchmarks.gpu_layers.measure import Attempt, Bench, DeviceLost, measure_case
from benchmarks.gpu_layers.pool import BuildError, CompilerPool
from benchmarks.gpu_layers.run import BAD, LOST, OK, Limits, measure, prepare
from benchmarks.gpu_layers.store import Store
from tests.benchmarks.gpu_layers.stand_ins import CASE, FakeTimer, bench, crash, job

pytest.importorskip("torch")
ALL = ("cudnn_fp32", "cudnn_tf32", "cudnn_fp16", "cublas", "cublas_im2col", "cusparse", "cusparse_im2col")


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    pool = CompilerPool(tmp_path_factory.mktemp("kernels"), 1, 120)
    yield pool
    pool.close()


def jobs(case):
    """Two kernels, one that refuses every filter, and the last resort."""
    refusing = job("cpu_vector", case, format="no such format")
    return [refusing, job("cpu_vector", case), job("cpu_vector", case, cols=32), job("fallback", case)]


def run(pool, path, *, where=None, resume=False, limits=None, sources="s", case=CASE, peers=ALL):
    store, lines = Store(path), []
    number = store.begin_run({"sources": sources})
    code = measure(
        {case: jobs(case)},
        pool,
        where or bench(),
        store,
        number,
        peers=peers,
        resume=resume,
        limits=limits or Limits(),
        tell=lines.append,
    )
    return code, lines


def test_a_case_from_compiler_to_record(pool, tmp_path):
    code, lines = run(pool, tmp_path / "r.json")
    assert code == OK, lines
    text = json.loads((tmp_path / "r.json").read_text())
    (record,), (dense,) = text["cases"], text["dense"]
    refused, *ran = record["variants"]
    assert "unknown format" in refused["refused"] and [row["default"] for row in ran] == [True, False]
    assert all(0 < row["error"] < 1e-5 and row["template"] == "cpu_vector" for row in ran), "no last resort was needed"
    # The fake timer doubles each time: the first is the fastest, and what is quoted is its later time.
    assert record["ours"]["default"]
    assert record["ours"]["time"]["median_us"] > ran[0]["time"]["median_us"]
    assert record["nnz"] == round(0.1 * 832 * 48) and record["row_nnz"]["min"] < record["row_nnz"]["max"]
    assert 0 < dense["peers"]["cudnn_fp32"]["error"] < 1e-5 < dense["peers"]["cudnn_fp16"]["error"]
    assert set(dense["peers"]) == set(ALL[:5]) and set(record["sparse_peers"]) == set(ALL[5:])
    assert "cpu_vector" in lines[0] and lines[-1] == "1 measured"


def test_resuming_measures_only_what_is_missing_or_stale(pool, tmp_path):
    path = tmp_path / "r.json"
    run(pool, path)
    before = path.read_text()
    code, lines = run(pool, path, resume=True)
    assert (code, lines, path.read_text()) == (OK, ["1 left out"], before)
    assert "measured" in run(pool, path, resume=True, sources="others")[1][-1]
    text = json.loads(path.read_text())
    assert len(text["cases"]) == 1 and text["cases"][0]["run"] == 1
    assert len(text["dense"]) == 1, "with --resume dense peers of an earlier run are kept"
    run(pool, path, sources="others")
    assert len(json.loads(path.read_text())["dense"]) == 2


def test_the_time_budget_stops_in_between(pool, tmp_path):
    code, lines = run(pool, tmp_path / "r.json", limits=Limits(stop_at=0))
    assert (code, lines) == (OK, ["1 not measured: out of time"])


def test_a_wrong_kernel_gets_no_time(pool, tmp_path):
    wrong = pool.submit(job("cpu_vector", cols=32)).result()
    stored = wrong.path.with_suffix(".npz")
    good = stored.read_bytes()
    with np.load(stored) as arrays:
        values = dict(arrays)
    first = next(iter(values))
    try:
        np.savez(stored, **{**values, first: values[first] * np.float32(1.001)})
        code, lines = run(pool, tmp_path / "r.json", peers=())
    finally:
        stored.write_bytes(good)
    (record,) = json.loads((tmp_path / "r.json").read_text())["cases"]
    row = record["variants"][2]
    assert code == BAD and row["wrong"] and "time" not in row and row["error"] == pytest.approx(1e-3, rel=0.1)
    assert "WRONG" in lines[0] and lines[-1] == "1 wrong"
    assert record["ours"]["default"], "the right one still counts"


def test_a_lost_device_is_noted_and_its_kernel_not_run_again(pool, tmp_path):
    class Dying(FakeTimer):
        def time(self, launch):
            self.dead = True
            raise RuntimeError("an illegal memory access was encountered")

    path, where = tmp_path / "r.json", bench()
    code, lines = run(pool, path, where=replace(where, timer=Dying()))
    assert code == LOST and "--resume" in lines[-1]
    assert json.loads(path.read_text())["lethal"] == [job("cpu_vector").key]
    assert run(pool, path, resume=True)[0] == OK
    (record,) = json.loads(path.read_text())["cases"]
    assert not record["ours"]["default"] and "took the device down" in record["variants"][1]["failed"]


def test_a_lost_device_in_a_peer(pool):
    class Dying(FakeTimer):
        def time(self, launch):
            if self.us > 20:
                self.dead = True
                raise RuntimeError("unspecified launch failure")
            return super().time(launch)

    where: Bench = replace(bench(), timer=Dying())
    attempt = job("cpu_vector")
    with pytest.raises(DeviceLost) as caught:
        measure_case(
            where,
            CASE,
            [Attempt(attempt.variant, attempt.key, pool.submit(attempt).result)],
            peers=ALL,
            known_dense={},
        )
    assert caught.value.key == ""


def test_prepare_compiles_once(tmp_path):
    lines: list[str] = []
    written = []
    for _ in range(2):
        pool = CompilerPool(tmp_path, 1, 120)
        assert prepare(jobs(CASE), pool, lines.append) == OK
        pool.close()
        written.append({path: path.stat().st_mtime_ns for path in tmp_path.iterdir()})
    assert written[0] == written[1] and len(written[0]) == 2 * len(("so", "npz", "json"))
    assert sum("refused" in line for line in lines) == 2


def test_compilers_that_crash_raise_or_hang_cost_one_kernel_each(tmp_path):
    pool = CompilerPool(tmp_path, 1, 3, compile_job=crash)
    expected = {1: "crashed, exit code 7", 8: "no such luck", 32: "not compiled within 3 s"}
    try:
        for batch, complaint in expected.items():
            with pytest.raises(BuildError, match=complaint):
                pool.submit(job("cpu_vector", replace(CASE, batch=batch))).result(timeout=60)
        assert prepare([job("cpu_vector")], pool, print) == BAD
    finally:
        pool.close()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bit_storage(tmp_path, dtype, pool):
    case = replace(CASE, dtype=dtype)
    assert build(job("fallback", case), tmp_path).constants[0] == dtype
    store, lines = Store(tmp_path / "r.json"), []
    number = store.begin_run({"sources": "s"})
    options = {"peers": (), "resume": False, "limits": Limits(), "tell": lines.append}
    assert measure({case: [job("fallback", case)]}, pool, bench(), store, number, **options) == OK, lines
    assert store.cases[0]["ours"]["template"] == "fallback", "the last resort, where nothing else runs"
