"""The last word on a CPU's winners: timed in turn with the default, cold as in a network.

A search times each candidate by itself, and what else the machine did then counts for or against it. So a candidate
that only seems faster than the default would make a network slower.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from tvm_sparse.tuning import candidates, measuring
from tvm_sparse.tuning.measuring import Timing
from tvm_sparse.tuning.search import Proposal
from tvm_sparse.tuning.tasks import BUILD_TIMEOUT_S, LayerTask, outcome
from tvm_sparse.tuning.trials import Failure, TrialBook
from tvm_sparse.tuning.workers import WorkerPool

#: Seconds that all candidates of a layer may take: large layers have fewer rounds.
TIMEOUT_S = measuring.MOST_IN_TURN_S + 120.0
#: A candidate is confirmed that takes this share less than the default in the median round, ...
MARGIN = 0.02
#: ... and less in so many standard deviations more rounds than chance would give (one in 700 for each candidate).
DEVIATIONS = 3.0


def confirm(
    book: TrialBook,
    tasks: Sequence[LayerTask],
    target: Any,
    archs: Sequence[str],
    builders: WorkerPool,
    runners: WorkerPool,
) -> None:
    """Time the fastest few of each layer in turn with its default, and record which of them are faster beyond doubt.

    What was confirmed before is left alone until something faster is found. A layer whose default fails has no verdict.
    """
    for task in tasks:
        proposals = book.contenders(task.layer)
        built = _built(task, proposals, target, archs, builders) if proposals and not book.fault else []
        if len(built) < 2 or built[0][1] != proposals[0]:
            continue
        files = [name for name, _, _ in built]
        arguments = files, str(task.folder), task.layer.workload
        timings = outcome(runners.submit(measuring.measure_in_turn, *arguments, timeout_s=TIMEOUT_S), "run_failed")
        if isinstance(timings, Failure) or not timings[0].times_us:
            continue
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        for number, ((_, proposal, kind), timing) in enumerate(zip(built, timings, strict=True)):
            verdict = "yes" if is_faster(timing, timings[0]) else "no"
            book.add(task.layer, proposal, kind, timing, confirmed=verdict if number else "default", date=now)


def is_faster(timing: Timing, default: Timing) -> bool:
    """Whether times are shorter than the default's of the same rounds, by a margin and beyond doubt."""
    rounds = len(timing.times_us)
    if not rounds:
        return False
    ratios = np.array(timing.times_us) / np.array(default.times_us)
    wins = int((ratios < 1).sum())
    return wins >= rounds / 2 + DEVIATIONS * math.sqrt(rounds) / 2 and float(np.median(ratios)) <= 1 - MARGIN


def _built(
    task: LayerTask, proposals: Sequence[Proposal], target: Any, archs: Sequence[str], builders: WorkerPool
) -> list[tuple[str, Proposal, str]]:
    """Files, proposal and kind of those that build, in their order."""
    task.prepared.result()
    names = [str(task.folder / f"confirmed-{number}") for number in range(len(proposals))]
    futures = [
        builders.submit(
            candidates.make,
            *(name, str(task.folder), task.layer.workload, target, archs),
            *(one.point.template, one.point.knobs),
            timeout_s=BUILD_TIMEOUT_S,
        )
        for name, one in zip(names, proposals, strict=True)
    ]
    made = [outcome(future) for future in futures]
    return [
        (name, proposal, answer[0])
        for name, proposal, answer in zip(names, proposals, made, strict=True)
        if not isinstance(answer, Failure) and answer[0]
    ]
