"""Everything a layer could run as: every template that applies, times its knobs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any

from tvm_sparse.schedules import TEMPLATES, select
from tvm_sparse.schedules.base import Template
from tvm_sparse.tuning.records import Knobs, canonical
from tvm_sparse.workload import ConvWorkload


@dataclass(frozen=True)
class Point:
    """A template with knobs. Points are equal when both are."""

    template: str
    text: str  # the knobs in canonical form, so that points can be hashed

    @staticmethod
    def of(template: str, knobs: Mapping[str, int | str]) -> Point:
        return Point(template, canonical(knobs))

    @property
    def knobs(self) -> Knobs:
        import json

        return json.loads(self.text)


#: Microseconds of a point on a layer of a workload and density by rule; None without a rule.
Estimate = Callable[[ConvWorkload, float, Point], float | None]


def estimator(target: Any) -> Estimate:
    """What the templates' own rules say of points on a target, remembered; see Template.estimate_us."""
    templates = {one.name: one for one in TEMPLATES}

    @lru_cache(maxsize=2**17)
    def estimate_us(workload: ConvWorkload, density: float, point: Point) -> float | None:
        chosen = templates.get(point.template)  # a log may name one that is gone
        return None if chosen is None else chosen.estimate_us(workload, density, point.knobs, target)

    return estimate_us


#: A template whose likeliest point is so much slower than another's is hardly worth a trial.
FAR = 2.0


class LayerSpace:
    """The points of one layer on one target, the dense alternative among them.

    A dense layer is one in row blocks of several channels that share columns, so it needs no templates of its own.
    Templates that apply to everything (the fallback) are only searched where nothing else applies.
    """

    def __init__(
        self,
        workload: ConvWorkload,
        density: float,
        target: Any,
        templates: Sequence[Template] = TEMPLATES,
        *,
        estimate: Estimate | None = None,
    ) -> None:
        applying = [one for one in templates if one.applies(workload, target) is None]
        able = [one for one in applying[:-1] if one.too_much(workload, density) is None] or applying[-1:]
        self._templates = {one.name: one for one in able}
        self._estimate = estimator(target) if estimate is None else estimate
        self._spaces = {name: one.space(workload, target) for name, one in self._templates.items()}
        self._workload, self._density, self._target = workload, density, target
        self._least: Point | None = None  # the most likely so far

    @property
    def size(self) -> int:
        """Points in all, those whose knobs do not go together included."""
        return sum(math.prod(map(len, space.values())) for space in self._spaces.values())

    def drop(self, template: str) -> None:
        """Leave a template out from now on, unless it is the last."""
        if len(self._spaces) > 1:
            self._spaces.pop(template, None)

    def starts(self, untuned: str) -> list[Point]:
        """What runs the layer without a log, "sparse" or "dense" as `untuned` says, then as the other, then every
        template's default.
        """
        workload, target = self._workload, self._target
        points = []
        for density in (self._density, 1.0) if untuned == "sparse" else (1.0, self._density):
            chosen = select(workload, density, target)
            points.append(Point.of(chosen.name, chosen.default(workload, density, target)))
        for name, one in self._templates.items():
            points.append(Point.of(name, one.default(workload, self._density, target)))
        return list(dict.fromkeys(points))

    def random(self, rng: Random) -> Point:
        return self._random_of(rng.choice(list(self._spaces)), rng)

    def _random_of(self, name: str, rng: Random) -> Point:
        return Point.of(name, {knob: rng.choice(values) for knob, values in self._spaces[name].items()})

    def mutate(self, point: Point, rng: Random) -> Point:
        """A point with one or two knobs changed, half of the time to a neighbouring value."""
        space = self._spaces.get(point.template)
        if space is None or set(space) != set(point.knobs):  # of a version with other knobs
            return self.random(rng)
        knobs = point.knobs
        changeable = [knob for knob, values in space.items() if len(values) > 1]
        for knob in rng.sample(changeable, min(len(changeable), rng.choice((1, 1, 2)))):
            knobs[knob] = _changed(knobs[knob], space[knob], rng)
        return Point.of(point.template, knobs)

    def cross(self, one: Point, other: Point, rng: Random) -> Point:
        """Knobs from either of two points of one template; the first where they differ in template or have others."""
        ours, theirs = one.knobs, other.knobs
        if one.template != other.template or set(ours) != set(theirs):
            return one
        return Point.of(one.template, {knob: rng.choice((ours[knob], theirs[knob])) for knob in ours})

    def estimate_us(self, point: Point) -> float | None:
        """Microseconds by the template's own rule; infinite where the point does not fit, None without a rule."""
        return self._estimate(self._workload, self._density, point)

    def fits(self, point: Point) -> bool:
        """Whether the template's rule, if it has one, does not exclude the point."""
        return self.estimate_us(point) != math.inf

    def likely(self, rng: Random, draws: int) -> Point:
        """A random point of a template; where it has a rule, one that should be fast, found by so many looks at it.

        A template all of whose points should be slow leaves its turn to the best one's.
        """
        first = self.random(rng)
        found = self._found(first, rng, draws)
        if self._least is not None and self._estimated(found) > FAR * self._estimated(self._least):
            found = self._found(self._least, rng, draws)
        if self.estimate_us(found) is not None and (
            self._least is None or self._estimated(found) < self._estimated(self._least)
        ):
            self._least = found
        return found

    def _found(self, first: Point, rng: Random, draws: int) -> Point:
        if self.estimate_us(first) is None or first.template not in self._spaces:
            return first
        best = min(
            (self._random_of(first.template, rng) for _ in range(draws // 2)), key=self._estimated, default=first
        )
        for _ in range(draws // 2):
            best = min(best, self.mutate(best, rng), key=self._estimated)
        return best

    def _estimated(self, point: Point) -> float:
        return self.estimate_us(point) or 0.0

    def fitted(self, point: Point) -> Point | None:
        """A point of another layer with its knobs moved to the nearest values of this one, or None."""
        space = self._spaces.get(point.template)
        if space is None or set(space) != set(point.knobs):
            return None
        return Point.of(point.template, {knob: _nearest(value, space[knob]) for knob, value in point.knobs.items()})


def _changed(value: int | str, values: Sequence[int | str], rng: Random) -> int | str:
    if isinstance(value, int) and rng.random() < 0.5:
        numbers = sorted(number for number in values if isinstance(number, int) and number != value)
        below, above = [n for n in numbers if n < value][-1:], [n for n in numbers if n > value][:1]
        if below or above:
            return rng.choice(below + above)
    return rng.choice([other for other in values if other != value])


def _nearest(value: int | str, values: Sequence[int | str]) -> int | str:
    if value in values or not isinstance(value, int):
        return value if value in values else values[0]
    numbers = [number for number in values if isinstance(number, int)]
    return min(numbers, key=lambda number: abs(math.log((number + 0.5) / (value + 0.5)))) if numbers else values[0]
