"""Layers under search: each finds candidates, and learns what became of them."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from tvm_sparse.tuning import inputs
from tvm_sparse.tuning.cost_model import CostModel
from tvm_sparse.tuning.layers import Layer
from tvm_sparse.tuning.search import LayerSearch, Repetition
from tvm_sparse.tuning.space import Point
from tvm_sparse.tuning.trials import Failure, Trial, TrialBook
from tvm_sparse.tuning.workers import WorkerCrash, WorkerError, WorkerPool

#: Seconds that scheduling or building a candidate, and preparing a layer, may take.
BUILD_TIMEOUT_S, PREPARE_TIMEOUT_S = 120.0, 600.0
#: Candidates that are refused cost little, but a space may hold hardly anything else: so many, and so many more for
#: each that is not.
MOST_REFUSED, REFUSED_EACH = 400, 4
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
    """One layer under search: finds candidates, and tells the search what became of them."""

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
        self._model, self._target, self._builders, self.folder = model, target, builders, folder
        self._prepared: Future[Any] | None = None
        self._observed = 0
        self._refusals: Counter[str] = Counter()

    def again(self) -> LayerTask:
        """A task that measures once more what a verdict on this layer rests on."""
        assert isinstance(self.search, LayerSearch)
        search = Repetition(self.search, self.book.unconfirmed(self.layer))
        task = LayerTask(self.layer, search, self.book, None, self._target, self._builders, self.folder)
        task._prepared = self._prepared
        return task

    @property
    def prepared(self) -> Future[Any]:
        """Done when the layer's inputs and what they must give are on the disk."""
        if self._prepared is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            np.save(self.folder / "weight.npy", self.layer.weight)
            arguments = (str(self.folder), self.layer.workload, 0)
            self._prepared = self._builders.submit(inputs.prepare, *arguments, timeout_s=PREPARE_TIMEOUT_S)
        return self._prepared

    def next_trials(self, wanted: int) -> list[Trial]:
        """Candidates to make, as many as the budget has left; none when the layer is done."""
        granted = self.book.grant(self.layer, wanted)
        if not granted:
            return []
        if self._model is not None:
            self._model.refresh()
        self._observe()
        prepared = self.prepared
        trials: list[Trial] = []
        refusals = MOST_REFUSED + REFUSED_EACH * self.book.tallies[self.layer].trials
        if self._refusals.total() < refusals and not self.book.stopped:
            for proposal in itertools.islice(self.search.proposals(), granted):
                number = next(self._numbers)
                files, refused = self.folder / str(number), functools.partial(self._refused, proposal.point)
                trial = Trial(number, self.layer, proposal, "sparse", files, self.folder, prepared, refused)
                self.book.trials[number] = trial
                trials.append(trial)
        self.book.give_back(self.layer, granted - len(trials))
        return trials

    def _refused(self, point: Point) -> None:
        if self._model is not None:
            self._model.model.refuse(self.search.subject, point)
        self._refusals[point.template] += 1
        taken = {record.template for record in self.book.tallies[self.layer].records if record.ok}
        if self._refusals[point.template] >= HOPELESS and point.template not in taken:
            self.search.space.drop(point.template)

    def _observe(self) -> None:
        records = self.book.tallies[self.layer].records
        for record in records[self._observed :]:
            self.search.observe(Point.of(record.template, record.knobs), record.time_us if record.ok else None)
            self._observed += 1


def outcome(future: Future[Any], failed: str = "build_failed") -> Any:
    """What a worker answered, or the Failure it came to."""
    try:
        return future.result()
    except TimeoutError as error:
        return Failure("timeout", str(error))
    except (WorkerCrash, WorkerError) as error:
        return Failure(failed, str(error))
