"""The driver on a CPU: kernels for LLVM, a small layer, and a timer that takes no time."""

from __future__ import annotations

from pathlib import Path

from benchmarks.gpu_layers.bounds import Device
from benchmarks.gpu_layers.build import Job
from benchmarks.gpu_layers.cases import Case
from benchmarks.gpu_layers.measure import Bench
from benchmarks.gpu_layers.timing import COPIES, Launch, Timing
from benchmarks.gpu_layers.variants import Variant

H200 = Device("NVIDIA H200", "9.0", 132, 1_980_000, 3_201_000, 6144)
#: 832x7x7 -> 48, 1x1.
CASE = Case("goog5b5r", 1, 0.9)
KNOBS: dict[str, int | str] = {}


class FakeTimer:
    """Launches everything once with each set of data; every time is twice as long as the one before."""

    def __init__(self) -> None:
        self.us = 1.0
        self.dead = False

    def time(self, launch: Launch) -> Timing:
        for i in range(COPIES):
            launch(i)
        self.us *= 2
        return Timing(self.us, self.us * 0.9, self.us * 1.1, 21, 24, "graph", 1980)

    def time_cold(self, launch: Launch) -> Timing:
        return self.time(launch)

    def lost(self) -> bool:
        return self.dead


def bench() -> Bench:
    return Bench("cpu", H200, FakeTimer(), seed=1)


def job(template: str = "fallback", case: Case = CASE, **changes: int | str) -> Job:
    """A template with its default knobs, or some of them changed, on the CPU."""
    from benchmarks.gpu_layers.build import job_target
    from tvm_sparse.schedules import template as named

    knobs = dict(named(template).default(case.workload(), 1 - case.sparsity, job_target("llvm")))
    return Job(case, Variant(template, {**knobs, **changes}, not changes), "llvm", seed=1)


def crash(job: Job, folder: Path) -> None:
    """Stands in for a compiler."""
    import os

    if job.case.batch == 1:
        os._exit(7)
    if job.case.batch == 8:
        raise ValueError("no such luck")
    import time

    time.sleep(60)
