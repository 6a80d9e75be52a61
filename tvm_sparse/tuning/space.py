"""Everything a layer could run as: every template that applies, times its knobs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


class LayerSpace:
    """The points of one layer on one target, the dense alternative among them.

    A dense layer is one in row blocks of several channels that share columns, so it needs no templates of its own.
    Templates that apply to everything (the fallback) are only searched where nothing else applies.
    """

    def __init__(
        self, workload: ConvWorkload, density: float, target: Any, templates: Sequence[Template] = TEMPLATES
    ) -> None:
        applying = [one for one in templates if one.applies(workload, target) is None]
        self._templates = {one.name: one for one in applying[: max(1, len(applying) - 1)]}
        self._spaces = {name: one.space(workload, target) for name, one in self._templates.items()}
        self._workload, self._density, self._target = workload, density, target

    @property
    def size(self) -> int:
        """Points in all, those whose knobs do not go together included."""
        return sum(math.prod(map(len, space.values())) for space in self._spaces.values())

    def drop(self, template: str) -> None:
        """Leave a template out from now on, unless it is the last."""
        if len(self._spaces) > 1:
            self._spaces.pop(template, None)

    def untuned(self, kind: str) -> Point:
        """What runs a layer without a log: sparse or dense."""
        density = self._density if kind == "sparse" else 1.0
        chosen = select(self._workload, density, self._target)
        return Point.of(chosen.name, chosen.default(self._workload, density, self._target))

    def defaults(self) -> list[Point]:
        """The defaults of every template, for the layer as it is and as if it were dense."""
        points = [
            Point.of(name, self._templates[name].default(self._workload, density, self._target))
            for density in (self._density, 1.0)
            for name in self._spaces
        ]
        return list(dict.fromkeys(points))

    def random(self, rng: Random) -> Point:
        name = rng.choice(list(self._spaces))
        return Point.of(name, {knob: rng.choice(values) for knob, values in self._spaces[name].items()})

    def mutate(self, point: Point, rng: Random) -> Point:
        """A point with one or two knobs changed, half of the time to a neighbouring value."""
        space = self._spaces.get(point.template)
        if space is None:
            return self.random(rng)
        knobs = point.knobs
        changeable = [knob for knob, values in space.items() if len(values) > 1]
        for knob in rng.sample(changeable, min(len(changeable), rng.choice((1, 1, 2)))):
            knobs[knob] = _changed(knobs[knob], space[knob], rng)
        return Point.of(point.template, knobs)

    def cross(self, one: Point, other: Point, rng: Random) -> Point:
        """Knobs from either of two points of one template; the first where they differ in template."""
        if one.template != other.template:
            return one
        ours, theirs = one.knobs, other.knobs
        return Point.of(one.template, {knob: rng.choice((ours[knob], theirs[knob])) for knob in ours})

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
