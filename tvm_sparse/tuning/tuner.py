"""A tuning session: layers in, records in the log, a summary out."""

from __future__ import annotations

import math
import os
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tvm_sparse.errors import InputError
from tvm_sparse.tuning.candidates import ready_to_build, starts
from tvm_sparse.tuning.confirm import confirm
from tvm_sparse.tuning.cost_model import CostModel, Subject
from tvm_sparse.tuning.fleet import ATTEMPTS, count_servers
from tvm_sparse.tuning.layers import Layer
from tvm_sparse.tuning.log_files import LogWriter, make_log, read_log
from tvm_sparse.tuning.measuring import Place, ready_to_run
from tvm_sparse.tuning.records import Knobs, Record, Site, density_class
from tvm_sparse.tuning.search import LayerSearch
from tvm_sparse.tuning.selection import best, deduplicated
from tvm_sparse.tuning.space import LayerSpace, estimator
from tvm_sparse.tuning.tasks import BUILD_TIMEOUT_S, LayerTask, Model
from tvm_sparse.tuning.trials import Budget, Tally, TrialBook
from tvm_sparse.tuning.workers import WorkerPool

#: Trials of a layer before another one's turn, and before the model learns from them.
BATCH = 8
#: Trials under way for each builder of an assembly line.
UNDER_WAY = 2
STRATEGIES = ("guided", "random")


@dataclass(frozen=True)
class Setting:
    """What is tuned for and with: the TVM target, its CUDA archs if any, who measures and how many build.

    `places` are the devices of this machine; with a `tracker` (host, port, key) its servers measure instead.
    """

    site: Site
    target: Any
    archs: tuple[str, ...] = ()
    places: tuple[Place, ...] = (Place("cpu"),)
    tracker: tuple[str, int, str] | None = None
    builders: int | None = None
    batch: int = BATCH
    strategy: str = "guided"
    seed: int = 0


@dataclass(frozen=True)
class TunedLayer:
    """A layer after tuning. Times in microseconds; None where nothing of the kind ran. `gain` is default over best."""

    name: str
    workload: str
    density: float
    count: int
    trials: int
    failed: dict[str, int]
    default_us: float | None
    dense_us: float | None
    best_us: float | None
    gain: float | None
    kind: str | None
    template: str | None
    knobs: Knobs = field(default_factory=dict)


def tune(
    layers: Sequence[Layer],
    setting: Setting,
    budget: Budget,
    log: str | Path,
    *,
    begin: Callable[[Sequence[Tally]], None] = lambda tallies: None,
    told: Callable[[Tally], None] = lambda tally: None,
    warn: Callable[[str], None] = lambda problem: None,
) -> list[TunedLayer]:
    """Search every layer's templates and knobs, and add what is measured to the log.

    Parameters
    ----------
    log : a folder; what it holds counts: finished trials are not repeated, other layers' records guide the search
    begin, told : called with the tallies of all layers before the first trial, and with one after each of its trials
    warn : called with a line for every damaged line of the log, and where Ctrl-C ends the session

    Raises
    ------
    InputError
        No layers, a strategy that is none, or a fleet without servers.
    OutputError
        The log cannot be written; what was measured before is in it.
    CompileError
        XGBoost is missing.
    """
    if setting.strategy not in STRATEGIES:
        raise InputError(f"unknown search {setting.strategy!r}: choose one of {', '.join(STRATEGIES)}")
    if not layers:
        raise InputError("no layer to tune: none of the convolutions has a filter and a shape that a template can run")
    make_log(log)
    known = read_log(log)
    for problem in known.problems:
        warn(problem)
    book = TrialBook(layers, setting.site, LogWriter(log), budget, known.records, told)
    begin(list(book.tallies.values()))
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tvm-sparse-"))
        builders, runners = stack.enter_context(_workers(setting))
        stack.enter_context(_interruptible(book, warn))
        _search(book, setting, builders, runners, Path(folder))
    return [summary(tally) for tally in book.tallies.values()]


def summary(tally: Tally) -> TunedLayer:
    """What was found for a layer."""
    fastest, dense = best(tally.records), best(tally.records, "dense")
    default = best(record for record in tally.records if record.source == "default")
    gain = default.time_us / fastest.time_us if default and fastest and default.time_us and fastest.time_us else None
    return TunedLayer(
        name=tally.layer.name,
        workload=str(tally.layer.workload),
        density=tally.layer.density,
        count=tally.layer.count,
        trials=tally.trials,
        failed=dict(Counter(record.outcome for record in deduplicated(tally.records) if not record.ok)),
        default_us=default.time_us if default else None,
        dense_us=dense.time_us if dense else None,
        best_us=fastest.time_us if fastest else None,
        gain=gain,
        kind=fastest.kind if fastest else None,
        template=fastest.template if fastest else None,
        knobs=dict(fastest.knobs) if fastest else {},
    )


def total_gain(layers: Sequence[TunedLayer]) -> float | None:
    """Geometric mean of the gains of the layers."""
    gains = [layer.gain for layer in layers if layer.gain]
    return math.exp(sum(map(math.log, gains)) / len(gains)) if gains else None


def _search(book: TrialBook, setting: Setting, builders: WorkerPool, runners: WorkerPool, folder: Path) -> None:
    from tvm_sparse.tuning import metaschedule
    from tvm_sparse.tvm_support import without_tensor_intrinsics

    guided = setting.strategy == "guided"
    estimate = estimator(setting.target)
    model = Model(book, CostModel(estimate, seed=setting.seed)) if guided else None
    if model is not None:
        model.refresh()
    tasks: dict[Layer, LayerTask] = {}
    for number, (layer, tally) in enumerate(book.tallies.items()):
        subject = Subject(layer.workload, layer.density, tally.rows)
        arguments = layer.workload, layer.density, setting.target, layer.untuned
        space = LayerSpace(layer.workload, layer.density, setting.target, estimate=estimate)
        search = LayerSearch(
            subject,
            space,
            model.model if model is not None else None,
            starts=builders.submit(starts, *arguments, timeout_s=BUILD_TIMEOUT_S).result,
            neighbours=partial(_others, book, layer),
            seed=setting.seed + number,
        )
        home = folder / str(number)
        tasks[layer] = LayerTask(layer, search, book, model, setting.target, builders, home)
    remote = setting.tracker is not None
    overlap = remote or setting.places[0].kind == "cuda"
    line = metaschedule.Line(book, builders, runners, overlap=overlap, attempts=ATTEMPTS if remote else 1)
    builder = metaschedule.CandidateBuilder(line, setting.target, setting.archs)
    runner = metaschedule.CandidateRunner(line)
    # A random search learns nothing of what improves.
    evenly = not guided or (book.budget.trials is None and book.budget.seconds is None)
    under_way = UNDER_WAY * builders.size if overlap else 0
    known = len(book.history)

    def run(tasks: list[LayerTask], evenly: bool) -> None:
        with without_tensor_intrinsics():
            metaschedule.tune_tasks(
                tasks,
                setting.target,
                builder,
                runner,
                batch=setting.batch,
                evenly=evenly,
                seed=setting.seed,
                under_way=under_way,
            )

    run(list(tasks.values()), evenly)
    if not remote:
        if not setting.archs:
            confirm(book, list(tasks.values()), setting.target, setting.archs, builders, runners)
        return
    fresh = {record.layer for record in book.history[known:]}
    again = [task for layer, task in tasks.items() if layer.name in fresh and book.unconfirmed(layer)]
    if book.fault is None and again:
        book.lift_budget()
        run([task.again() for task in again], True)


def _others(book: TrialBook, layer: Layer) -> list[Record]:
    """What was measured on other layers so far."""
    own = layer.workload, density_class(layer.density)
    return [record for record in book.history if (record.workload, density_class(record.density)) != own]


@contextmanager
def _workers(setting: Setting) -> Iterator[tuple[WorkerPool, WorkerPool]]:
    """Builders and runners, all starting at once; nothing of them is left afterwards."""
    cuda = bool(setting.archs)
    if setting.tracker is None:
        places = list(setting.places)
    else:
        place = Place(setting.places[0].kind, tracker=setting.tracker)
        places = [place] * count_servers(setting.tracker)
    count = setting.builders or len(os.sched_getaffinity(0))
    builders = WorkerPool([(ready_to_build, (cuda,))] * count)
    runners = WorkerPool([(ready_to_run, (place,)) for place in places], fragile=True)
    try:
        builders.start()
        runners.start()
        yield builders, runners
    finally:
        runners.close()
        builders.close()


@contextmanager
def _interruptible(book: TrialBook, warn: Callable[[str], None]) -> Iterator[None]:
    """Let Ctrl-C and faults out as what they are: MetaSchedule turns whatever passes through it into its own errors.

    The first Ctrl-C lets the trials under way end, as a fault does: raised anywhere, also where C++ calls back and can
    take no exception, it ended a session now and then by a segmentation fault. The second one does not wait.
    """

    def interrupt(*_: Any) -> None:
        if isinstance(book.fault, KeyboardInterrupt):
            raise KeyboardInterrupt
        book.fault = book.fault or KeyboardInterrupt()
        warn("ends when the trials under way are done; Ctrl-C again ends it now")

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, interrupt) if main else None
    try:
        yield
    except BaseException:
        if book.fault is not None:
            raise book.fault from None
        raise
    finally:
        if main:
            signal.signal(signal.SIGINT, before)
    if book.fault is not None:
        raise book.fault
