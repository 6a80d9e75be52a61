"""One case on a device: check every variant, time it, time the fastest again, and time the peers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_layers.bounds import Device, binding, bounds_us
from benchmarks.gpu_layers.build import Built
from benchmarks.gpu_layers.cases import Case
from benchmarks.gpu_layers.kernels import TOLERANCE, CaseData, LoadedKernel
from benchmarks.gpu_layers.peers import DENSE, SPARSE, Peers
from benchmarks.gpu_layers.pool import BuildError, Refusal
from benchmarks.gpu_layers.timing import Timer, TimerError
from benchmarks.gpu_layers.variants import Variant
from benchmarks.gpu_layers.weights import weight_of

Record = dict[str, Any]


class DeviceLost(Exception):
    """The device takes no more work; `key` names the kernel that was running, if it was one of ours."""

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True)
class Attempt:
    """A variant, the key of its kernel, and what waits for the compiler or raises a BuildError."""

    variant: Variant
    key: str
    kernel: Callable[[], Built]


@dataclass(frozen=True)
class Bench:
    """Where is measured: a GPU and its timer. `weights` is the folder of published filters."""

    torch_device: str
    device: Device
    timer: Timer
    seed: int
    weights: Path | None = None


def measure_case(
    bench: Bench,
    case: Case,
    attempts: Sequence[Attempt],
    *,
    peers: Sequence[str],
    known_dense: Record,
    lethal: Callable[[str], bool] = lambda key: False,
) -> tuple[Record, Record]:
    """Everything about one case.

    Parameters
    ----------
    attempts
        What of ours to try. A wrong one gets no time.
    peers
        Names of the peers to measure; of the dense ones, those that `known_dense` lacks.
    lethal
        Whether a kernel, by its key, has taken the device down before; it is not run again.

    Returns
    -------
    The record of the case, and what is new about the dense peers of its layer and batch.

    Raises
    ------
    DeviceLost
        As after an illegal access.
    """
    workload = case.workload()
    weight = weight_of(case, bench.seed, bench.weights)
    nnz = int(np.count_nonzero(weight))
    rows = np.count_nonzero(weight.reshape(workload.k, -1), axis=1)
    limits = bounds_us(bench.device, workload, nnz)
    record: Record = {
        **asdict(case),
        "workload": str(case.shape.workload(case.batch, case.dtype)),
        "nnz": nnz,
        "row_nnz": {"min": int(rows.min()), "median": float(np.median(rows)), "max": int(rows.max())},
        "bounds_us": {name: round(us, 4) for name, us in limits.items()},
        "binding": binding(limits),
        "variants": [],
    }
    try:
        data = CaseData(workload, weight, bench.torch_device, bench.seed)
        if best := _fastest(record["variants"], attempts, data, bench.timer, lethal):
            record["ours"] = _chosen(*best, limits, bench.timer)
    except (RuntimeError, TimerError) as error:  # out of memory, or the fastest failed the second time
        record["failed"] = _one_line(error)
        if bench.timer.lost():
            raise DeviceLost(record["failed"]) from error
        return record, {}
    best = None  # its memory is wanted below
    dense = tuple(name for name in DENSE if name in peers and name not in known_dense)
    shape = case.shape.workload(case.batch)
    inputs = [x.float().view(shape.n, shape.c, shape.h, shape.w) for x in data.inputs]
    try:
        rivals = Peers(shape, inputs, weight, data.error)
        record["sparse_peers"] = rivals.measure(tuple(name for name in SPARSE if name in peers), bench.timer)
        return record, rivals.measure(dense, bench.timer)
    except RuntimeError as error:
        raise DeviceLost(_one_line(error)) from error


def _fastest(
    rows: list[Record],
    attempts: Sequence[Attempt],
    data: CaseData,
    timer: Timer,
    lethal: Callable[[str], bool],
) -> tuple[Record, LoadedKernel] | None:
    """Check and time every attempt into `rows`; the fastest that is right, or None."""
    best = None
    for attempt in attempts:
        if attempt.variant.last_resort and best is not None:
            continue
        row: Record = {**asdict(attempt.variant), "key": attempt.key}
        rows.append(row)
        try:
            row["compile_s"] = (built := attempt.kernel()).seconds
        except Refusal as error:
            row["refused"] = str(error)
            continue
        except BuildError as error:
            row["failed"] = f"compile: {error}"
            continue
        if lethal(attempt.key):
            row["failed"] = "run: it took the device down"
            continue
        try:
            kernel = LoadedKernel(built, data)
            row["error"] = kernel.error()
            if not row["error"] <= TOLERANCE[data.workload.dtype]:
                row["wrong"] = True
                row["error"] = None if np.isnan(row["error"]) else row["error"]
                continue
            row["time"] = asdict(timer.time(kernel.launch))
        except Exception as error:  # whatever TVM raises: a kernel that cannot be run is a finding
            row["failed"] = f"run: {_one_line(error)}"
            if timer.lost():
                raise DeviceLost(row["failed"], attempt.key) from error
            continue
        if best is None or row["time"]["median_us"] < best[0]["time"]["median_us"]:
            best = row, kernel
    return best


def _chosen(row: Record, kernel: LoadedKernel, limits: dict[str, float], timer: Timer) -> Record:
    """The fastest, timed again: the time it was chosen by was the luckiest of several."""
    time = timer.time(kernel.launch)
    return {
        **{name: row[name] for name in ("template", "knobs", "default", "logged", "overlap", "key", "error")},
        "time": asdict(time),
        "warm_icache": asdict(timer.time(kernel.launch_same)),
        "cold_l2": asdict(timer.time_cold(kernel.launch)),
        "share_of_bound": {name: round(us / time.median_us, 4) for name, us in limits.items()},
    }


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
