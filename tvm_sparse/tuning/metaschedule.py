"""Our search inside MetaSchedule: what its task scheduler asks for candidates, builds and runs them with.

A candidate of MetaSchedule is a schedule of one fixed function. Our knobs change the packed filter and with it the
function's arguments, so a candidate here is a number in the book of trials, and builder and runner look it up. That the
database is our log has the same reason: MetaSchedule's finds records by the function they were made from.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from concurrent.futures import CancelledError, Future, wait
from dataclasses import replace
from typing import Any

import tvm
from tvm import s_tir, te
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from tvm_sparse.tuning import candidates, measuring
from tvm_sparse.tuning.tasks import BUILD_TIMEOUT_S, LayerTask, outcome
from tvm_sparse.tuning.trials import Failure, Result, Trial, TrialBook
from tvm_sparse.tuning.workers import WorkerPool

NUMBER = "tvm_sparse.trial"
RUN_TIMEOUT_S = 20.0
#: Built candidates that may wait for each device: enough to keep it busy, few enough to be up to date.
WAITING = 48


@derived_object
class Strategy(ms.search_strategy.PySearchStrategy):
    """MetaSchedule's search strategy: candidates of a LayerTask."""

    def __init__(self, task: LayerTask, batch: int) -> None:
        super().__init__()
        self._task, self._batch = task, batch

    def _initialize_with_tune_context(self, context: Any) -> None:
        pass

    def pre_tuning(self, *settings: Any) -> None:
        pass

    def post_tuning(self) -> None:
        pass

    def generate_measure_candidates(self) -> list[Any] | None:
        trials = self._task.next_trials(self._batch)
        return [_candidate(trial.number) for trial in trials] or None

    def notify_runner_results(self, measured: Any, results: Any) -> None:
        """Nothing to do: the book has the results already."""

    def clone(self) -> Any:
        return self


class Line:
    """The assembly line of trials: built in some worker processes, measured in others, recorded.

    Parameters
    ----------
    overlap : build candidates and prepare layers while others are measured, which would disturb a CPU that does both
    attempts : how often a candidate is tried that raises or crashes
    """

    def __init__(
        self, book: TrialBook, builders: WorkerPool, runners: WorkerPool, *, overlap: bool, attempts: int = 1
    ) -> None:
        self.book, self.overlap = book, overlap
        self._builders, self._runners, self._attempts = builders, runners, attempts
        self._built: dict[int, Future[Any]] = {}
        self._room = threading.BoundedSemaphore(WAITING * runners.size)

    def build(self, trial: Trial, target: Target, archs: tuple[str, ...]) -> Future[Any]:
        """Start to schedule and compile a trial."""
        point, where = trial.proposal.point, (str(trial.files), str(trial.folder), trial.layer.workload)
        arguments = (*where, target, archs, point.template, point.knobs)
        future = self._builders.submit(candidates.make, *arguments, timeout_s=BUILD_TIMEOUT_S)
        self._built[trial.number] = future
        return future

    def measure(self, trial: Trial) -> Future[Result]:
        """Measure a trial once it is built; waits while too many others do, or anything else is under way."""
        self._room.acquire()
        if not self.overlap:
            self._builders.settle()
        done: Future[Result] = Future()
        done.add_done_callback(lambda _: self._room.release())
        self._built.pop(trial.number).add_done_callback(functools.partial(self._check, trial, done))
        return done

    def _check(self, trial: Trial, done: Future[Result], built: Future[Any]) -> None:
        made = _outcome_or_end(built, "build_failed", done)
        if isinstance(made, Failure):
            self._close(trial, done, made)
        elif not done.done():
            kind, refusal = made
            if not kind:
                self.book.refuse(trial)
                done.set_result(Failure("refused", refusal))
                return
            trial = replace(trial, kind=kind)
            trial.prepared.add_done_callback(functools.partial(self._run, trial, done))

    def _run(self, trial: Trial, done: Future[Result], prepared: Future[Any]) -> None:
        failure = _outcome_or_end(prepared, "run_failed", done)
        if isinstance(failure, Failure):
            self._close(trial, done, failure)
        elif not done.done():
            best_us = self.book.best_us(trial)
            arguments = (str(trial.files), str(trial.folder), trial.layer.workload, best_us)
            running = self._runners.submit(
                measuring.measure, *arguments, timeout_s=RUN_TIMEOUT_S, attempts=self._attempts
            )
            running.add_done_callback(functools.partial(self._finish, trial, done))

    def _finish(self, trial: Trial, done: Future[Result], running: Future[Any]) -> None:
        result = _outcome_or_end(running, "run_failed", done)
        if not done.done():
            self._close(trial, done, result)

    def _close(self, trial: Trial, done: Future[Result], result: Result) -> None:
        with contextlib.suppress(Exception):  # the book keeps it as its fault, which ends the session
            self.book.close(trial, result)
        done.set_result(result)


def _outcome_or_end(future: Future[Any], failed: str, done: Future[Result]) -> Any:
    """What a worker answered or came to; `done` is cancelled where the session ended first."""
    try:
        return outcome(future, failed)
    except CancelledError:
        done.cancel()
        return None


@derived_object
class CandidateBuilder(ms.builder.PyBuilder):
    """MetaSchedule's builder: hands trials to the line. What fails to build is found out there."""

    def __init__(self, line: Line, target: Target, archs: tuple[str, ...]) -> None:
        super().__init__()
        self._line, self._target, self._archs = line, target, archs

    def build(self, build_inputs: Any) -> list[Any]:
        trials = [self._line.book.trials[int(one.mod["main"].attrs[NUMBER])] for one in build_inputs]
        futures = [self._line.build(trial, self._target, self._archs) for trial in trials]
        if not self._line.overlap:
            wait(futures)
        return [ms.builder.BuilderResult(str(trial.number), None) for trial in trials]


@derived_object
class CandidateRunner(ms.runner.PyRunner):
    """MetaSchedule's runner: takes trials from the line, each recorded as soon as it is done."""

    def __init__(self, line: Line) -> None:
        super().__init__()
        self._line = line

    def run(self, runner_inputs: Any) -> list[Any]:
        trials = [self._line.book.trials[int(str(one.artifact_path))] for one in runner_inputs]
        futures = [self._line.measure(trial) for trial in trials]
        if not self._line.overlap:
            wait(futures)
        return [_RunnerFuture(future) for future in futures]


@derived_object
class _RunnerFuture(ms.runner.PyRunnerFuture):
    def __init__(self, future: Future[Result]) -> None:
        super().__init__()
        self._future = future

    def done(self) -> bool:
        return self._future.done()

    def result(self) -> Any:
        result = self._future.result()
        if isinstance(result, Failure):
            return ms.runner.RunnerResult(None, result.message)
        if not result.times_us:
            return ms.runner.RunnerResult(None, "wrong result")
        return ms.runner.RunnerResult([time_us * 1e-6 for time_us in result.times_us], None)


def tune_tasks(
    tasks: list[LayerTask],
    target: Target,
    builder: Any,
    runner: Any,
    *,
    batch: int,
    evenly: bool,
    seed: int,
    under_way: int = 0,
) -> None:
    """Let MetaSchedule's task scheduler share the trials among the layers until each is done.

    `evenly` gives every layer a batch in turn; otherwise those that occur often and still improve get more. So many
    trials are `under_way` at once as keep all builders busy, though some take longer than others.
    """
    logging.getLogger("tvm.s_tir.meta_schedule").setLevel(logging.ERROR)
    # A task alone would never be built while it is measured: several that share one search take turns.
    lanes = tasks * max(2 if len(tasks) == 1 else 1, -(-under_way // (batch * len(tasks))))
    contexts = [
        ms.TuneContext(
            mod=_placeholder(-1),
            target=target,
            space_generator=ms.space_generator.ScheduleFn(
                lambda sch: None, sch_rules=[], postprocs=[], mutator_probs={}
            ),
            search_strategy=Strategy(task, batch),
            task_name=task.layer.name,
            num_threads=1,
            rand_state=seed + 1,
        )
        for task in lanes
    ]
    scheduler = ms.task_scheduler.RoundRobin() if evenly else ms.task_scheduler.GradientBased(seed=seed + 1)
    weights = [float(task.layer.count) for task in lanes]
    unlimited = 2**30  # the book grants trials
    scheduler.tune(contexts, weights, unlimited, unlimited, batch, builder, runner, [], None, None)


def _candidate(number: int) -> Any:
    return ms.search_strategy.MeasureCandidate(s_tir.Schedule(_placeholder(number)), [])


@functools.lru_cache(maxsize=1)
def _empty() -> Any:
    x = te.placeholder((1,), name="x")
    return te.create_prim_func([x, te.compute((1,), lambda i: x[i], name="y")])


def _placeholder(number: int) -> tvm.IRModule:
    """A module that says which trial it stands for."""
    return tvm.IRModule({"main": _empty().with_attr(NUMBER, number)})
