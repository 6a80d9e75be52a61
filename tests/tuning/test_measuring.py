"""How a CPU's candidates are timed: cold, checked before, each thread on a CPU of its own."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.processes import cpus_of_threads
from tests.tuning.small_session import small_layers
from tvm_sparse.targets import make_target
from tvm_sparse.tuning import candidates, measuring
from tvm_sparse.tuning.inputs import prepare
from tvm_sparse.tuning.workers import WorkerPool
from tvm_sparse.workload import ConvWorkload


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], str, ConvWorkload]:
    """The files of two candidates that are right and of one that is wrong, their layer's folder, its workload."""
    layer, target, folder = small_layers()[0], make_target("llvm", threads=1), str(tmp_path)
    np.save(tmp_path / "weight.npy", layer.weight)
    prepare(folder, layer.workload, 0)
    points = candidates.starts(layer.workload, layer.density, target, "sparse")[:2]
    files = [str(tmp_path / str(number)) for number in range(3)]
    for name, point in zip(files, [*points, points[0]], strict=True):
        assert candidates.make(name, folder, layer.workload, target, (), point.template, point.knobs)[0]
    with np.load(f"{files[2]}.npz") as packed:
        arrays = {name: packed[name] * (1.001 if packed[name].dtype == np.float32 else 1) for name in packed.files}
    np.savez(f"{files[2]}.npz", **arrays)
    monkeypatch.setattr(measuring, "_last", None)
    return files, folder, layer.workload


def test_one_by_one(built: tuple[list[str], str, ConvWorkload]) -> None:
    files, folder, workload = built
    timing = measuring.measure(files[0], folder, workload, float("inf"))
    assert timing.timer == "cold" and timing.error < 1e-5 and min(timing.times_us) > 0
    assert measuring.REPEATS <= len(timing.times_us) <= measuring.REPEATS * measuring.COLD_CALLS * measuring.MOST_ROUNDS
    hopeless = measuring.measure(files[0], folder, workload, 1e-6)
    assert len(hopeless.times_us) <= measuring.FEW_REPEATS * measuring.COLD_CALLS
    assert measuring.measure(files[2], folder, workload, float("inf")).times_us == ()


def test_in_turn(built: tuple[list[str], str, ConvWorkload], monkeypatch: pytest.MonkeyPatch) -> None:
    files, folder, workload = built
    one, two, wrong = measuring.measure_in_turn(files, folder, workload)
    assert len(one.times_us) == len(two.times_us) == measuring.ROUNDS_IN_TURN and {one.timer, two.timer} == {"cold"}
    assert max(one.error, two.error) < 1e-5 < wrong.error and wrong.times_us == ()
    monkeypatch.setattr(measuring, "MOST_IN_TURN_S", 0.0)
    brief = measuring.measure_in_turn(files[:2], folder, workload)
    assert [len(timing.times_us) for timing in brief] == [measuring.FEWEST_IN_TURN] * 2


def test_the_calling_thread_has_a_cpu_of_its_own() -> None:
    cpus = sorted(os.sched_getaffinity(0))
    place = measuring.Place("cpu", threads=len(cpus))
    pool = WorkerPool([(measuring.ready_to_run, (place,))])
    try:
        assert pool.submit(os.sched_getaffinity, 0, timeout_s=60).result() == {cpus[0]}
        assert all(pool.submit(cpus_of_threads, timeout_s=60).result().count({cpu}) == 1 for cpu in cpus)
    finally:
        pool.close()
