"""Gradient-boosted trees that rank the points of a layer by what was measured on all layers of a log.

They learn log2(time / time of the layer's reference), so that what is learnt on one layer holds for its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_sparse.errors import CompileError
from tvm_sparse.tuning.features import layer_features, point_features
from tvm_sparse.tuning.records import Record, Rows
from tvm_sparse.tuning.selection import by_key
from tvm_sparse.tuning.space import Estimate, Point
from tvm_sparse.workload import ConvWorkload

#: Targets are clipped here, and this is what a candidate that failed counts as: eight times the reference.
WORST = 3.0
#: With fewer examples nothing is worth learning.
FEWEST = 12
ROUNDS = 120
#: Refused points to remember, the latest.
MOST_REFUSED = 2000
SETTINGS = {
    "objective": "reg:squarederror",
    "max_depth": 6,
    "eta": 0.12,
    "subsample": 0.8,
    "colsample_bytree": 0.6,
    "min_child_weight": 1.0,
    "nthread": 1,  # a few thousand examples take a quarter of a second; more threads wait for CPUs that builders use
    "verbosity": 0,
}


def no_estimate(workload: ConvWorkload, density: float, point: Point) -> float | None:
    """Where there is no rule."""
    return None


@dataclass(frozen=True)
class Subject:
    """A layer as the model sees it."""

    workload: ConvWorkload
    density: float
    rows: Rows


class CostModel:
    """Ranks points. Not fitted, it knows nothing: `ready` is False.

    Parameters
    ----------
    estimate : gives the template's own estimate of a point, for a workload and density, or None where it has none

    Raises
    ------
    CompileError
        XGBoost is not installed.
    """

    def __init__(self, estimate: Estimate = no_estimate, *, seed: int = 0) -> None:
        try:
            import xgboost
        except ImportError:
            raise CompileError('tuning needs XGBoost: pip install "tvm-sparse[tune]"') from None
        self._xgboost = xgboost
        self._settings = {**SETTINGS, "seed": seed}
        self._columns: dict[str, int] = {}
        self._estimate = estimate
        self._refused: list[dict[str, float]] = []
        self._booster: Any = None

    @property
    def ready(self) -> bool:
        return self._booster is not None

    def refuse(self, subject: Subject, point: Point) -> None:
        """Learn from now on that a template refuses a point."""
        self._refused = [*self._refused[1 - MOST_REFUSED :], *self._examples(subject, [point])]

    def fit(self, records: Iterable[Record]) -> None:
        """Learn from records anew; those of each layer are put in relation to one another."""
        examples: list[dict[str, float]] = []
        targets: list[float] = []
        for group in by_key(record for record in records if not record.confirmed).values():  # other times than those
            reference = _reference(group)
            if reference is None:
                continue
            subject = Subject(group[0].workload, group[0].density, group[0].rows)
            examples += self._examples(subject, [Point.of(record.template, record.knobs) for record in group])
            for record in group:
                relative = math.log2(record.time_us / reference) if record.ok and record.time_us else WORST
                targets.append(min(WORST, relative))
        if len(examples) < FEWEST:
            return
        examples += self._refused
        targets += [WORST] * len(self._refused)
        self._columns = {name: column for column, name in enumerate(sorted({name for one in examples for name in one}))}
        matrix = self._xgboost.DMatrix(self._matrix(examples), label=np.array(targets))
        self._booster = self._xgboost.train(self._settings, matrix, num_boost_round=ROUNDS)

    def predict(self, subject: Subject, points: Sequence[Point]) -> NDArray[np.float32]:
        """log2 of each point's time in relation to the layer's reference; lower is faster."""
        return self._booster.predict(self._xgboost.DMatrix(self._matrix(self._examples(subject, points))))

    def _examples(self, subject: Subject, points: Sequence[Point]) -> list[dict[str, float]]:
        """Features of points of a layer, their estimates in relation to the least of them among the features."""
        workload, density = subject.workload, subject.density
        shared = layer_features(workload, density, subject.rows)
        examples = [{**shared, **point_features(workload, point)} for point in points]
        estimates = [self._estimate(workload, density, point) for point in points]
        finite = [us for us in estimates if us is not None and us < math.inf]
        for example, estimate_us in zip(examples, estimates, strict=True):
            if estimate_us is not None and estimate_us < math.inf:
                example["estimate"] = math.log2(estimate_us)
                example["relative estimate"] = math.log2(estimate_us / min(finite))
        return examples

    def _matrix(self, examples: list[dict[str, float]]) -> NDArray[np.float32]:
        matrix = np.full((len(examples), len(self._columns)), np.nan, np.float32)
        for row, example in enumerate(examples):
            for name, value in example.items():
                column = self._columns.get(name)
                if column is not None:
                    matrix[row, column] = value
        return matrix


def _reference(group: list[Record]) -> float | None:
    """The time that those of a layer are put in relation to: of its default, or else the median."""
    times = {record.source: record.time_us for record in reversed(group) if record.ok and record.time_us}
    if "default" in times:
        return times["default"]
    right = [record.time_us for record in group if record.ok and record.time_us]
    return float(np.median(right)) if right else None
