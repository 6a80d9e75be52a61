"""The book of a tuning session: which candidates are under way, what became of them, when to stop."""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import math
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tvm_sparse.errors import OutputError
from tvm_sparse.tuning.layers import Layer
from tvm_sparse.tuning.log_files import LogWriter
from tvm_sparse.tuning.measuring import Timing
from tvm_sparse.tuning.records import OVERLAP, Record, Rows, Site, density_class
from tvm_sparse.tuning.search import Proposal
from tvm_sparse.tuning.selection import best
from tvm_sparse.tuning.space import Point
from tvm_sparse.tvm_support.dependent_launch import pays_to_overlap

PACKAGES = ("tvm-sparse", "apache-tvm", "apache-tvm-ffi")
MESSAGE_CHARACTERS = 300
#: Candidates that are timed in turn with the default.
MOST_CONTENDERS = 4
#: The files of a candidate.
SUFFIXES = (".module", ".npz", ".so")


@dataclass(frozen=True)
class Budget:
    """When to stop: trials of all layers, of each layer, seconds; what is None has no limit."""

    trials: int | None = None
    per_layer: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Failure:
    """Why a trial has no time: an outcome of a record, and what was said."""

    outcome: str
    message: str


Result = Timing | Failure


@dataclass(frozen=True)
class Trial:
    """A candidate under way; its files are FILES.module, .npz and .so, its layer's stand in `folder` once prepared.

    `kind` is "sparse" until it is scheduled; `refused` is told if its template refuses the knobs.
    """

    number: int
    layer: Layer
    proposal: Proposal
    kind: str
    files: Path
    folder: Path
    prepared: Future[Any] = field(repr=False)
    refused: Callable[[], None] = field(repr=False)


@dataclass
class Tally:
    """What is known of one layer: its records, how many trials were granted so far, its row statistics."""

    layer: Layer
    rows: Rows
    records: list[Record] = field(default_factory=list)
    granted: int = 0

    @property
    def trials(self) -> int:
        """Points that were tried; some have several records."""
        return len({record.point for record in self.records})

    @property
    def best_us(self) -> float:
        return min((record.time_us for record in self.records if record.ok and record.time_us), default=math.inf)


class TrialBook:
    """Keeps the records of a session, writes each to the log as soon as there is a result, and grants trials.

    Records that a log already holds count as trials, so that a session that was cut off goes on where it was. Safe for
    several threads.

    Parameters
    ----------
    known : every record of the log, other layers' included
    told : called with a layer's tally after each of its records
    """

    def __init__(
        self,
        layers: Iterable[Layer],
        site: Site,
        writer: LogWriter,
        budget: Budget,
        known: Iterable[Record],
        told: Callable[[Tally], None],
    ) -> None:
        self.site, self.budget = site, budget
        self._writer, self._told = writer, told
        self._lock = threading.Lock()
        self._end = math.inf if budget.seconds is None else time.monotonic() + budget.seconds
        self._versions = dict(_versions())
        self.history = [record for record in known if record.site == site]
        self.tallies = {layer: Tally(layer, layer.rows) for layer in layers}
        self.trials: dict[int, Trial] = {}
        self.fault: BaseException | None = None
        own = {(tally.layer.workload, density_class(tally.layer.density)): tally for tally in self.tallies.values()}
        for record in self.history:
            tally = own.get((record.workload, density_class(record.density)))
            # A point that was timed otherwise than those to come has not been tried.
            if tally is not None and (not record.ok or (record.timer == OVERLAP) == self._overlaps(tally.layer)):
                tally.records.append(record)
        for tally in own.values():
            tally.granted = tally.trials

    @property
    def stopped(self) -> bool:
        """Whether time is up or the session failed."""
        return self.fault is not None or time.monotonic() >= self._end

    def grant(self, layer: Layer, wanted: int) -> int:
        """How many of the trials a layer asks for it may make; they count from now on."""
        with self._lock:
            tally = self.tallies[layer]
            left = [wanted]
            if self.budget.per_layer is not None:
                left.append(self.budget.per_layer - tally.granted)
            if self.budget.trials is not None:
                left.append(self.budget.trials - sum(other.granted for other in self.tallies.values()))
            granted = 0 if self.stopped else max(0, min(left))
            tally.granted += granted
            return granted

    def best_us(self, trial: Trial) -> float:
        """What a trial competes with; infinite for one that is measured once more, since a verdict rests on it."""
        tally, point = self.tallies[trial.layer], trial.proposal.point
        again = any(Point.of(record.template, record.knobs) == point for record in tally.records)
        return math.inf if again or trial.proposal.source == "default" else tally.best_us

    def lift_budget(self) -> None:
        """From now on every trial is granted."""
        self.budget, self._end = Budget(), math.inf

    def unconfirmed(self, layer: Layer) -> list[Proposal]:
        """What a verdict on a layer rests on, so far as it was measured but once and on a CPU, where others run too.

        These are the default, the fastest and the next, the fastest sparse and the fastest dense one.
        """
        tally = self.tallies[layer]
        right = sorted((one for one in tally.records if one.ok), key=lambda one: one.time_us or math.inf)
        times = Counter(one.point for one in right)
        named = [*right[:2], best(right, "sparse"), best(right, "dense")]
        named += [one for one in right if one.source == "default"]
        wanted = [one for one in named if one is not None and one.timer == "cold" and times[one.point] == 1]
        return list(dict.fromkeys(Proposal(Point.of(one.template, one.knobs), one.source) for one in wanted))

    def contenders(self, layer: Layer) -> list[Proposal]:
        """The default of a layer and its fastest others, if a CPU timed each by itself and nothing confirmed them."""
        records = [one for one in self.tallies[layer].records if one.ok]
        alone = (one for one in records if one.timer == "cold" and not one.confirmed)
        cold = sorted(alone, key=lambda one: one.time_us or math.inf)
        default = next((one for one in records if one.source == "default"), None)
        compared = {one.point for one in records if one.confirmed}
        if default is None or not cold or cold[0].point in {default.point, *compared}:
            return []
        others = list(dict.fromkeys(one.point for one in cold if one.point != default.point))[:MOST_CONTENDERS]
        winner = best(records)
        named = [default, *(one for one in cold if one.point in others), *([winner] if winner else [])]
        return list({one.point: Proposal(Point.of(one.template, one.knobs), one.source) for one in named}.values())

    def give_back(self, layer: Layer, trials: int) -> None:
        """Trials that were granted and not made."""
        with self._lock:
            self.tallies[layer].granted -= trials

    def refuse(self, trial: Trial) -> None:
        """A template does not take the knobs of a trial, which so is none."""
        self._forget(trial)
        self.give_back(trial.layer, 1)
        trial.refused()

    def _forget(self, trial: Trial) -> None:
        self.trials.pop(trial.number, None)
        for suffix in SUFFIXES:
            with contextlib.suppress(OSError):
                trial.files.with_suffix(suffix).unlink(missing_ok=True)

    def close(self, trial: Trial, result: Result) -> None:
        """Record what became of a trial, on the disk before this returns."""
        self._forget(trial)
        self.add(trial.layer, trial.proposal, trial.kind, result)

    def add(
        self, layer: Layer, proposal: Proposal, kind: str, result: Result, *, confirmed: str = "", date: str = ""
    ) -> None:
        """Record a result, also of what was never built; see Record for `confirmed`. Without a `date` it is of now."""
        try:
            if isinstance(result, Failure) and os.strerror(errno.ENOSPC) in result.message:
                folder = tempfile.gettempdir()  # no fault of the candidate's
                raise OutputError(f"{folder}: the disk is full: make room or set TMPDIR to another folder")
            with self._lock:
                record = replace(self._record(layer, proposal, kind, result), confirmed=confirmed)
                record = replace(record, date=date) if date else record
                self._writer.append(record)
                self.history.append(record)
                self.tallies[layer].records.append(record)
            self._told(self.tallies[layer])
        except BaseException as error:  # the session ends with it; MetaSchedule would hide it
            self.fault = self.fault or error
            raise

    def _overlaps(self, layer: Layer) -> bool:
        return pays_to_overlap(self.site.arch, layer.workload.n)

    def _record(self, layer: Layer, proposal: Proposal, kind: str, result: Result) -> Record:
        record = Record(
            site=self.site,
            workload=layer.workload,
            density=round(layer.density, 6),
            rows=self.tallies[layer].rows,
            template=proposal.point.template,
            knobs=proposal.point.knobs,
            kind=kind,
            outcome="ok",
            layer=layer.name,
            source=proposal.source,
            versions=self._versions,
            date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )
        if isinstance(result, Failure):
            message = " ".join(result.message.split())[:MESSAGE_CHARACTERS]
            return replace(record, outcome=result.outcome, message=message)
        error = result.error if math.isfinite(result.error) else None
        if not result.times_us:
            return replace(record, outcome="wrong", error=error, message=f"relative error {result.error:.2e}")
        return replace(
            record,
            time_us=round(result.time_us, 3),
            spread_us=round(result.spread_us, 3),
            repeats=len(result.times_us),
            error=error,
            timer=OVERLAP if self._overlaps(layer) else result.timer,
        )


def _versions() -> Iterable[tuple[str, str]]:
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield package, importlib.metadata.version(package)
