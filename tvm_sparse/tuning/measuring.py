"""What a worker does with a built candidate: run it on the layer's inputs, check and time it.

FILES.so and FILES.npz are a candidate's (`candidates`), a layer's folder is as `inputs.prepare` left it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tvm_sparse.tuning.inputs import error_of, read_input, shapes_of
from tvm_sparse.workload import ConvWorkload

#: Largest relative error against float64, by the dtype of the data.
TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}
REPEATS, REPEAT_US, MOST_CALLS = 11, 1000.0, 500
#: Repeats go on while the quartiles are further apart than this share, so many times at most.
STEADY, MOST_ROUNDS = 0.1, 3
#: Copies of a GPU kernel's code that calls rotate over.
COPIES = 4
#: A candidate this much slower than the best so far is timed briefly: its exact time does not matter.
HOPELESS, FEW_REPEATS, PAUSE_S = 2.5, 2, 0.05
#: Rounds in which candidates are timed in turn: so many, or so many at least once that many seconds are over.
ROUNDS_IN_TURN, FEWEST_IN_TURN, MOST_IN_TURN_S = 41, 15, 10.0
#: TVM's, which drops from a CPU's caches all arguments of a call but the first. Calls are so timed one by one: as many
#: of a short one as this for one repeat.
FLUSH, COLD_CALLS = "cache_flush_cpu_non_first_arg", 3


@dataclass(frozen=True)
class Place:
    """What runs a candidate: "cpu" or "cuda", which GPU of several, the CPU threads; a tracker for a remote one."""

    kind: str
    index: int = 0
    threads: int | None = None
    tracker: tuple[str, int, str] | None = None


@dataclass(frozen=True)
class Timing:
    """Times of single calls in microseconds, the relative error against float64, and how time was taken."""

    times_us: tuple[float, ...]
    error: float
    timer: str

    @property
    def time_us(self) -> float:
        """The lower quartile: what else runs on a machine only ever adds time."""
        return float(np.percentile(self.times_us, 25))

    @property
    def spread_us(self) -> float:
        """Between the quartiles."""
        return float(np.percentile(self.times_us, 75)) - self.time_us


def ready_to_run(place: Place) -> None:
    """Set a fresh process up for measuring, there."""
    from tvm_sparse.tvm_support import enable_cuda, import_tvm

    global _place
    _place = place
    tvm = import_tvm()
    if place.kind == "cuda" and place.tracker is None:
        enable_cuda()
    if place.tracker is None and place.threads is not None:
        _pin_threads(tvm, place.threads)


def _pin_threads(tvm: Any, threads: int) -> None:
    """Give each thread that computes a CPU of its own, this one the first.

    Two that wait for each other on one CPU take a tick of the scheduler, some milliseconds, for every call.
    """
    cpus = sorted(os.sched_getaffinity(0))
    one_each = -2  # ThreadGroup::kSpecifyOneCorePerThread, but for the calling thread
    tvm.get_global_func("runtime.config_threadpool")(one_each, threads, [str(cpu) for cpu in cpus])
    os.sched_setaffinity(0, cpus[:1])


def measure(files: str, folder: str, workload: ConvWorkload, best_us: float) -> Timing:
    """Run FILES.so where this process was made ready to, on its layer's inputs: for its result, then for its time.

    The output starts as NaN; a result that is wrong is not timed. `best_us` is the best time of the layer so far,
    infinite at first and where the time matters in any case.
    """
    import tvm

    with _session(_place, f"{files}.so") as (module, device):
        with np.load(f"{files}.npz") as packed:
            constants = [tvm.runtime.tensor(packed[name], device) for name in sorted(packed.files)]
        inputs = _inputs(folder, workload, device)
        out = tvm.runtime.empty(inputs.nothing.shape, workload.dtype, device)
        inputs.nothing.copyto(out)
        tensors = [inputs.x, *constants, *inputs.others, out]
        module["main"](*tensors)
        device.sync()
        error = error_of(out.numpy(), np.load(f"{folder}/expected.npy"))
        if error > TOLERANCE[workload.dtype]:
            return Timing((), error, "")
        times, timer = _time(f"{files}.so", module, device, tensors, best_us)
    return Timing(tuple(times), error, timer)


def measure_in_turn(files: Sequence[str], folder: str, workload: ConvWorkload) -> list[Timing]:
    """Run several candidates of a CPU in turn, a call of each in every round; the times of a round have one index.

    As in a network each finds its input in the caches, for something has just written it, but neither its filter nor
    its output. A result that is wrong is not timed.
    """
    import tvm

    device, expected = tvm.cpu(), np.load(f"{folder}/expected.npy")
    inputs = _inputs(folder, workload, device)
    calls: list[Callable[[], Any]] = []
    errors: list[float] = []
    for name in files:
        module = tvm.runtime.load_module(f"{name}.so")
        with np.load(f"{name}.npz") as packed:
            constants = [tvm.runtime.tensor(packed[array], device) for array in sorted(packed.files)]
        out = tvm.runtime.empty(inputs.nothing.shape, workload.dtype, device)
        inputs.nothing.copyto(out)
        tensors = [inputs.x, *constants, *inputs.others, out]
        module["main"](*tensors)
        errors.append(error_of(out.numpy(), expected))
        timer = module.time_evaluator("main", device, number=1, repeat=1, f_preproc=FLUSH)
        calls.append(partial(timer, *tensors))
    right = [number for number, error in enumerate(errors) if error <= TOLERANCE[workload.dtype]]
    times: list[list[float]] = [[] for _ in files]
    end = time.monotonic() + MOST_IN_TURN_S
    for round_ in range(ROUNDS_IN_TURN):
        if round_ >= FEWEST_IN_TURN and time.monotonic() >= end:
            break
        for place in range(len(right)):
            number = right[(place + round_) % len(right)]  # so that none is always behind the same one
            times[number].append(calls[number]().results[0] * 1e6)
    return [Timing(tuple(own), error, "cold") for own, error in zip(times, errors, strict=True)]


@dataclass(frozen=True)
class _Inputs:
    """What all candidates of a layer take, on the device: x, bias and residual, and an output full of NaN."""

    folder: str
    x: Any
    others: list[Any]
    nothing: Any


def _inputs(folder: str, workload: ConvWorkload, device: Any) -> _Inputs:
    """Those of a layer; here the last layer's stay on the device, for copies of large ones take longer than runs."""
    import tvm

    global _last
    if _last is not None and _last.folder == folder:
        return _last
    _last = None  # two layers' may not fit
    x, *others = (tvm.runtime.tensor(read_input(folder, name, workload), device) for name in shapes_of(workload))
    nothing = np.full((workload.n, workload.k, workload.p, workload.q), np.nan, workload.dtype)
    inputs = _Inputs(folder, x, others, tvm.runtime.tensor(nothing, device))
    if _place.tracker is None:
        _last = inputs
    return inputs


def _session(place: Place, library: str) -> Any:
    """A context that gives the loaded candidate and its device, here or on a server of the fleet."""
    import tvm

    if place.tracker is None:
        return nullcontext((tvm.runtime.load_module(library), tvm.runtime.device(place.kind, place.index)))
    from tvm_sparse.tuning.fleet import remote_candidate

    return remote_candidate(place, library)


def _time(library: str, module: Any, device: Any, tensors: list[Any], best_us: float) -> tuple[Sequence[float], str]:
    """Times of one call in microseconds, from the best timer there is."""
    if _place.kind == "cuda" and _place.tracker is None:
        try:
            return _by_graph(library, module, tensors, best_us), "graph"
        except RuntimeError:
            device.sync()  # a call that cannot be captured is timed as it is

    def times_us(calls: int, repeats: int) -> list[float]:
        evaluator = module.time_evaluator("main", device, number=calls, repeat=repeats)
        return [seconds * 1e6 for seconds in evaluator(*tensors).results]

    if _place.kind == "cuda":
        return _adaptively(times_us, best_us), "events"

    def cold_us(calls: int, repeats: int) -> list[float]:
        cold = module.time_evaluator("main", device, number=1, repeat=repeats * min(calls, COLD_CALLS), f_preproc=FLUSH)
        return [seconds * 1e6 for seconds in cold(*tensors).results]

    return _adaptively(cold_us, best_us), "cold"


def _by_graph(library: str, module: Any, tensors: list[Any], best_us: float) -> Sequence[float]:
    """Times of calls in a CUDA graph that find none of their code in the instruction cache, as in a network."""
    from tvm_sparse.cuda.graph_timer import GraphTimer

    global _timer
    if _timer is None:
        _timer = GraphTimer(_place.index)
    timer, mains = _timer, [module["main"], *(_copy(library, number)["main"] for number in range(1, COPIES))]
    for main in mains:
        timer.warm(lambda main=main: main(*tensors))

    def times_us(calls: int, repeats: int) -> list[float]:
        return timer.calls_us(lambda number: mains[number % COPIES](*tensors), calls=calls, repeats=repeats)

    return _adaptively(times_us, best_us, fewest=COPIES)


def _copy(library: str, number: int) -> Any:
    """A candidate loaded once more, with code of its own on the device."""
    import tvm

    copy = f"{library}.{number}.so"
    try:
        return tvm.runtime.load_module(shutil.copy(library, copy))
    finally:
        Path(copy).unlink(missing_ok=True)


def _adaptively(times_us: Callable[[int, int], list[float]], best_us: float, fewest: int = 1) -> Sequence[float]:
    """Enough calls for a steady time, the fewest at once given; few of a candidate that is far behind."""
    first = min(times_us(fewest, 2))
    if first > HOPELESS * best_us:
        # On a CPU whose core someone else took, every call takes a scheduler's tick for a while.
        time.sleep(PAUSE_S)
        first = min(first, *times_us(fewest, 2))
    calls = max(fewest, min(MOST_CALLS, int(REPEAT_US / max(first, 0.1))))
    if first > HOPELESS * best_us:
        return times_us(calls, FEW_REPEATS)
    times: list[float] = []
    for _ in range(MOST_ROUNDS):
        times += times_us(calls, REPEATS)
        low, high = np.percentile(times, (25, 75))
        if high <= (1 + STEADY) * low:
            break
    return times


#: Of this process: where it measures, and with what.
_place = Place("cpu")
_timer: Any = None
_last: _Inputs | None = None
