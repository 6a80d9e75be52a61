"""Our search inside MetaSchedule: what its task scheduler asks for candidates, builds and runs them with.

A candidate of MetaSchedule is a schedule of one fixed function. Our knobs change the packed filter and with it the
function's arguments, so a candidate here is a number in the book of trials, and builder and runner look it up. That the
database is our log has the same reason: MetaSchedule's finds records by the function they were made from.
"""

from __future__ import annotations

import functools
import logging
from concurrent.futures import Future
from typing import Any

import tvm
from tvm import s_tir, te
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms
from tvm.target import Target

from tvm_sparse.tuning import candidates
from tvm_sparse.tuning.layers import Layer
from tvm_sparse.tuning.tasks import BUILD_TIMEOUT_S, LayerTask, outcome
from tvm_sparse.tuning.trials import Failure, Trial, TrialBook
from tvm_sparse.tuning.workers import WorkerPool

NUMBER = "tvm_sparse.trial"
RUN_TIMEOUT_S = 20.0


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


@derived_object
class CandidateBuilder(ms.builder.PyBuilder):
    """MetaSchedule's builder: compiles trials in worker processes, several at a time."""

    def __init__(self, book: TrialBook, pool: WorkerPool, target: Target, archs: tuple[str, ...]) -> None:
        super().__init__()
        self._book, self._pool, self._target, self._archs = book, pool, target, archs

    def build(self, build_inputs: Any) -> list[Any]:
        trials = [self._book.trials[int(one.mod["main"].attrs[NUMBER])] for one in build_inputs]
        futures = [
            self._pool.submit(candidates.build, str(trial.files), self._target, self._archs, timeout_s=BUILD_TIMEOUT_S)
            for trial in trials
        ]
        results = []
        for trial, future in zip(trials, futures, strict=True):
            failure = outcome(future)
            if isinstance(failure, Failure):
                self._book.close(trial, failure)
                results.append(ms.builder.BuilderResult(None, failure.message))
            else:
                results.append(ms.builder.BuilderResult(str(trial.number), None))
        return results


@derived_object
class CandidateRunner(ms.runner.PyRunner):
    """MetaSchedule's runner: measures trials on every place at once; each is recorded as soon as it is done.

    `overlap` lets the next candidates be built meanwhile, which would disturb a CPU that also measures; `attempts` is
    how often one is tried that raises or crashes.
    """

    def __init__(
        self, book: TrialBook, pool: WorkerPool, tasks: dict[Layer, LayerTask], overlap: bool, attempts: int
    ) -> None:
        super().__init__()
        self._book, self._pool, self._tasks = book, pool, tasks
        self._overlap, self._attempts = overlap, attempts

    def run(self, runner_inputs: Any) -> list[Any]:
        trials = [self._book.trials[int(str(one.artifact_path))] for one in runner_inputs]
        for trial in trials:
            self._tasks[trial.layer].prepared.result()
        futures = [self._submit(trial) for trial in trials]
        if not self._overlap:
            for future in futures:
                future.exception()
        return [_RunnerFuture(future) for future in futures]

    def _submit(self, trial: Trial) -> Future[Any]:
        best_us = self._book.tallies[trial.layer].best_us
        arguments = (str(trial.files), str(trial.folder), trial.layer.workload, best_us)
        future = self._pool.submit(candidates.measure, *arguments, timeout_s=RUN_TIMEOUT_S, attempts=self._attempts)
        future.add_done_callback(functools.partial(self._finished, trial))
        return future

    def _finished(self, trial: Trial, future: Future[Any]) -> None:
        if not future.cancelled():
            self._book.close(trial, outcome(future, "run_failed"))


@derived_object
class _RunnerFuture(ms.runner.PyRunnerFuture):
    def __init__(self, future: Future[Any]) -> None:
        super().__init__()
        self._future = future

    def done(self) -> bool:
        return self._future.done()

    def result(self) -> Any:
        result = outcome(self._future, "run_failed")
        if isinstance(result, Failure) or not result.times_us:
            return ms.runner.RunnerResult(None, getattr(result, "message", "wrong result"))
        return ms.runner.RunnerResult([time_us * 1e-6 for time_us in result.times_us], None)


def tune_tasks(
    tasks: list[LayerTask], target: Target, builder: Any, runner: Any, *, batch: int, evenly: bool, seed: int
) -> None:
    """Let MetaSchedule's task scheduler share the trials among the layers until each is done.

    `evenly` gives every layer a batch in turn; otherwise those that occur often and still improve get more.
    """
    logging.getLogger("tvm.s_tir.meta_schedule").setLevel(logging.ERROR)
    # A task alone would never be built while it is measured: two that share one search take turns.
    lanes = tasks * 2 if len(tasks) == 1 else tasks
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
