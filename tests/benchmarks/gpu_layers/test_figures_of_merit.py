"""Spread, plans, bounds, and reading the record: what lies between a sample and a claim."""

from __future__ import annotations

import pytest

from benchmarks.gpu_layers import bounds
from benchmarks.gpu_layers.cases import Case
from benchmarks.gpu_layers.report import crossing, geometric_mean
from benchmarks.gpu_layers.store import Store
from benchmarks.gpu_layers.timing import FEWEST_LAUNCHES, FEWEST_SAMPLES, LAUNCHES, SAMPLES, Timing, plan
from tests.benchmarks.gpu_layers.stand_ins import H200
from tvm_sparse.errors import InputError
from tvm_sparse.workload import ConvWorkload


def test_a_timing_is_per_launch_with_its_spread():
    timing = Timing.of([240.0 + i for i in range(0, 110, 10)], 10, "graph", 1979.6)
    assert (timing.median_us, timing.p10_us, timing.p90_us) == (29.0, 25.0, 33.0)
    assert (timing.samples, timing.launches, timing.clock_mhz) == (11, 10, 1980)


@pytest.mark.parametrize("us", [0.0, 1.0, 5.0, 100.0, 1e3, 1e4, 1e6])
def test_plans_keep_to_the_budget_and_to_enough_samples(us):
    found = plan(us)
    assert LAUNCHES >= found.launches >= FEWEST_LAUNCHES >= 12
    assert SAMPLES >= found.samples >= FEWEST_SAMPLES
    assert us * found.launches * found.samples <= max(400_000, us * FEWEST_LAUNCHES * FEWEST_SAMPLES)
    assert us > 800 or found.samples >= 15
    assert found.launches % 4 == 0, "every copy is launched equally often"


def test_bounds_are_those_of_the_notes():
    assert H200.operand_flop_per_s("float32") == pytest.approx(16.7e12, rel=2e-3)
    assert H200.operand_flop_per_s("float16") == pytest.approx(33.5e12, rel=2e-3)
    assert H200.flop_per_s == pytest.approx(66.9e12, rel=2e-3)
    assert H200.bytes_per_s == pytest.approx(4.9e12, rel=0.01)
    assert H200.arch == "sm_90"
    workload = Case("r50_14_3", 32, 0.9).workload()
    found = bounds.bounds_us(H200, workload, 58982)
    # kernels.md: 69.8 us are 63 % of this bound.
    assert found["operands"] / 69.8 == pytest.approx(0.63, abs=0.01)
    assert bounds.binding(found) == "operands"


def test_few_multiplications_are_bound_by_memory():
    workload = ConvWorkload(128, 64, 56, 56, 256, 1, 1)
    found = bounds.bounds_us(H200, workload, 160)
    assert bounds.binding(found) == "memory"
    assert found["memory"] == pytest.approx(4 * 128 * 3136 * 320 / H200.bytes_per_s * 1e6, rel=1e-3)


def test_without_a_driver_there_is_no_gpu(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(bounds.ctypes, "CDLL", missing)
    assert bounds.this_gpu() is None


def test_geometric_means():
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4)
    assert geometric_mean([]) is None


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(0.8, 0.5), (0.9, 2.0)], 0.85),
        ([(0.9, 2.0), (0.8, 0.5), (0.5, 0.1)], 0.85),
        ([(0.5, 1.5), (0.9, 3.0)], 0.0),
        ([(0.5, 0.5), (0.9, 0.9)], None),
        ([(0.5, 2.0), (0.7, 0.5), (0.9, 2.0)], 0.8),
        ([(0.8, 0.5), (0.9, 1.0)], 0.9),
        ([], None),
    ],
)
def test_where_a_speed_up_crosses_one(points, expected):
    assert crossing(points) == (pytest.approx(expected) if expected is not None else None)


def record(us: float, **fields: object) -> dict:
    return {"layer": "alex3", "batch": 1, "us": us, **fields}


def test_records_are_merged_by_case_and_peers_by_run(tmp_path):
    path = tmp_path / "deep" / "r.json"
    store = Store(path)
    first = store.begin_run({"date": "1"})
    store.add("a", record(1), {"cudnn_fp32": {"median_us": 10}}, first)
    store.add("b", record(2), {"cublas": {"median_us": 20}}, first)
    store = Store(path)
    assert store.begin_run({"date": "1"}) == first
    second = store.begin_run({"date": "2"})
    store.add("a", record(3), {"cudnn_fp32": {"median_us": 11}}, second)
    store = Store(path)
    assert [(row["case"], row["us"], row["run"]) for row in store.cases] == [("a", 3, second), ("b", 2, first)]
    assert store.dense("alex3", 1, first) == {"cudnn_fp32": {"median_us": 10}, "cublas": {"median_us": 20}}
    assert store.dense("alex3", 1)["cudnn_fp32"] == {"median_us": 11}
    assert store.dense("alex3", 32) == {}
    assert len(path.read_text().splitlines()) < 20, "a record a line"


@pytest.mark.parametrize("text", ["{", "[]", "7"])
def test_a_file_that_is_no_record_is_refused(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(InputError, match="not a file of GPU measurements"):
        Store(tmp_path / "r.json")
