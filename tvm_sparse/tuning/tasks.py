"""Layers under search: each finds candidates that can be scheduled, and learns what became of them."""

from __future__ import annotations

import itertools
from collections import Counter
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from tvm_sparse.tuning import candidates, inputs
from tvm_sparse.tuning.cost_model import CostModel
from tvm_sparse.tuning.layers import Layer
from tvm_sparse.tuning.search import LayerSearch, Proposal, Repetition
from tvm_sparse.tuning.space import Point
from tvm_sparse.tuning.trials import Failure, Trial, TrialBook
from tvm_sparse.tuning.workers import WorkerCrash, WorkerError, WorkerPool

#: Seconds that scheduling or building a candidate, and preparing a layer, may take.
BUILD_TIMEOUT_S, PREPARE_TIMEOUT_S = 30.0, 600.0
#: Candidates that are refused cost little, but a space may hold hardly anything else.
MOST_REFUSED = 400
#: A template that refused so many points and took none is left out.
HOPELESS = 8
#: The model is fitted again once it has so many new records, or this share of those it knows.
REFIT_AFTER, REFIT_SHARE = 12, 0.04


class Model:
    """The cost model of all layers, kept up with the book."""

    def __init__(self, book: TrialBook, model: CostModel) -> None:
        self.model = model
        self._book, self._seen = book, 0

    def refresh(self) -> None:
        """Fit again if there is enough new."""
        records = list(self._book.history)
        if len(records) - self._seen >= max(REFIT_AFTER, REFIT_SHARE * self._seen):
            self.model.fit(records)
            self._seen = len(records)


class LayerTask:
    """One layer under search: finds candidates that can be scheduled, and tells the search what became of them."""

    _numbers = itertools.count()

    def __init__(
        self,
        layer: Layer,
        search: LayerSearch | Repetition,
        book: TrialBook,
        model: Model | None,
        target: Any,
        builders: WorkerPool,
        folder: Path,
    ) -> None:
        self.layer, self.search, self.book = layer, search, book
        self._model, self._target, self._builders, self._folder = model, target, builders, folder
        self._prepared: Future[Any] | None = None
        self._observed = 0
        self._refusals: Counter[str] = Counter()
        self._taken = {record.template for record in book.tallies[layer].records if record.ok}

    def again(self) -> LayerTask:
        """A task that measures once more what a verdict on this layer rests on."""
        assert isinstance(self.search, LayerSearch)
        search = Repetition(self.search, self.book.unconfirmed(self.layer))
        task = LayerTask(self.layer, search, self.book, None, self._target, self._builders, self._folder)
        task._prepared = self._prepared
        return task

    @property
    def prepared(self) -> Future[Any]:
        """Done when the layer's inputs and what they must give are on the disk."""
        if self._prepared is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            np.save(self._folder / "weight.npy", self.layer.weight)
            arguments = (str(self._folder), self.layer.workload, 0)
            self._prepared = self._builders.submit(inputs.prepare, *arguments, timeout_s=PREPARE_TIMEOUT_S)
        return self._prepared

    def next_trials(self, wanted: int) -> list[Trial]:
        """Scheduled candidates, as many as the budget has left; none when the layer is done."""
        granted = self.book.grant(self.layer, wanted)
        if not granted:
            return []
        if self._model is not None:
            self._model.refresh()
        self._observe()
        trials: list[Trial] = []
        done = refused = 0
        proposals = self.search.proposals()
        prepared = self.prepared
        while done < granted and refused < MOST_REFUSED and not self.book.stopped:
            batch = list(itertools.islice(proposals, granted - done))
            if not batch:
                break
            for proposal, future, files in [self._schedule(proposal) for proposal in batch]:
                result = outcome(future)
                if isinstance(result, Failure):
                    self.book.add(self.layer, proposal, "sparse", result)
                    done += 1
                elif not result[0]:
                    refused += 1
                    self._refused(proposal.point)
                else:
                    self._taken.add(proposal.point.template)
                    trial = Trial(int(files.name), self.layer, proposal, result[0], files, self._folder, prepared)
                    self.book.trials[trial.number] = trial
                    trials.append(trial)
                    done += 1
        self.book.give_back(self.layer, granted - done)
        return trials

    def _refused(self, point: Point) -> None:
        if self._model is not None:
            self._model.model.refuse(self.search.subject, point)
        self._refusals[point.template] += 1
        if self._refusals[point.template] >= HOPELESS and point.template not in self._taken:
            self.search.space.drop(point.template)

    def _observe(self) -> None:
        records = self.book.tallies[self.layer].records
        for record in records[self._observed :]:
            self.search.observe(Point.of(record.template, record.knobs), record.time_us if record.ok else None)
            self._observed += 1

    def _schedule(self, proposal: Proposal) -> tuple[Proposal, Future[Any], Path]:
        files, point = self._folder / str(next(self._numbers)), proposal.point
        arguments = (str(files), str(self._folder), self.layer.workload, self._target, point.template, point.knobs)
        # The tuner waits for it, and for no build: those go on meanwhile.
        future = self._builders.submit(candidates.schedule, *arguments, timeout_s=BUILD_TIMEOUT_S, urgent=True)
        return proposal, future, files


def outcome(future: Future[Any], failed: str = "build_failed") -> Any:
    """What a worker answered, or the Failure it came to."""
    try:
        return future.result()
    except TimeoutError as error:
        return Failure("timeout", str(error))
    except (WorkerCrash, WorkerError) as error:
        return Failure(failed, str(error))
