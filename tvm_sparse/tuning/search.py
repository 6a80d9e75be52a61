"""Which points of a layer to try next: defaults, what won on its neighbours, then what the cost model favours."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from tvm_sparse.tuning.cost_model import CostModel, Subject
from tvm_sparse.tuning.records import Record
from tvm_sparse.tuning.selection import best, by_key
from tvm_sparse.tuning.space import Point
from tvm_sparse.workload import ConvWorkload

#: Points a round of evolution looks at, rounds, and parents it keeps.
POOL, GENERATIONS, PARENTS = 384, 3, 48
#: Every so many proposals one is random: what the model has never seen it cannot rank.
RANDOM_EVERY = 8
#: Looks at the space's own rule to find a likely point.
DRAWS = 120
#: Changes that lead from a starting point to one near it.
MUTATIONS = 2
#: Neighbours to start from, and points taken from each.
NEIGHBOURS, FROM_EACH = 4, 2


class Space(Protocol):
    """What a search needs of a space; LayerSpace is one."""

    def random(self, rng: Random) -> Point: ...
    def likely(self, rng: Random, draws: int) -> Point: ...
    def mutate(self, point: Point, rng: Random) -> Point: ...
    def cross(self, one: Point, other: Point, rng: Random) -> Point: ...
    def fitted(self, point: Point) -> Point | None: ...
    def fits(self, point: Point) -> bool: ...
    def drop(self, template: str) -> None: ...


@dataclass(frozen=True)
class Proposal:
    """A point to try and where it comes from: default, transfer, guided or random."""

    point: Point
    source: str


class LayerSearch:
    """The search on one layer. It proposes every point once at most; what failed or was refused counts as tried.

    Parameters
    ----------
    starts : gives the points to try first, that which runs the layer untuned before all others
    neighbours : gives the records of other layers of the same site, the best of which are tried early
    model : None searches at random
    """

    def __init__(
        self,
        subject: Subject,
        space: Space,
        model: CostModel | None,
        *,
        starts: Callable[[], Sequence[Point]],
        neighbours: Callable[[], Iterable[Record]] = tuple,
        seed: int = 0,
    ) -> None:
        self.subject = subject
        self.space, self._model, self._rng = space, model, Random(seed)
        self._tried: set[Point] = set()
        self._times: dict[Point, float] = {}
        self._first: list[Proposal] | None = None
        self._begin = starts
        self._neighbours = neighbours if model is not None else tuple
        self._starts: list[Point] = []
        self._proposed = 0

    @property
    def best_us(self) -> float:
        """The fastest time so far, infinite at first."""
        return min(self._times.values(), default=math.inf)

    def observe(self, point: Point, time_us: float | None) -> None:
        """Take note of a point that was tried; None where it failed."""
        self._tried.add(point)
        if time_us is not None:
            self._times[point] = time_us

    def proposals(self) -> Iterator[Proposal]:
        """Points to try, best first, until the space seems exhausted; what is taken counts as tried."""
        for proposal in self._fresh():
            if proposal.point not in self._tried:
                self._tried.add(proposal.point)
                self._proposed += 1
                yield proposal

    def _fresh(self) -> Iterator[Proposal]:
        if self._first is None:  # only now, for neighbours may have been tuned meanwhile
            sources = itertools.chain(("default",), itertools.repeat("seed"))
            self._first = [Proposal(point, source) for point, source in zip(self._begin(), sources, strict=False)]
            found = _from_neighbours(self.subject, self.space, self._neighbours())
            self._first += [Proposal(point, "transfer") for point in found]
            self._starts = [proposal.point for proposal in self._first] or [self.space.random(self._rng)]
        while self._first:
            yield self._first.pop(0)
        guided = self._guided() if self._model is not None and self._model.ready else iter(())
        misses = 0
        while misses < 1000:
            following = next(guided, None) if self._proposed % RANDOM_EVERY else None
            proposal = following or Proposal(self._drawn(), "random")
            misses = misses + 1 if proposal.point in self._tried else 0
            yield proposal

    def _drawn(self) -> Point:
        """A random point; of a search that a model will guide, a likely one or one near a point it started from."""
        if self._model is None:
            return self.space.random(self._rng)
        if self._proposed % 4:
            return self.space.likely(self._rng, DRAWS)
        point = self._rng.choice(self._starts)
        for _ in range(MUTATIONS):
            point = self.space.mutate(point, self._rng)
        return point

    def _guided(self) -> Iterator[Proposal]:
        """The points of an evolved pool, the most promising first."""
        parents = sorted(self._times, key=self._times.__getitem__)[:PARENTS]
        pool: dict[Point, float] = {}
        for _ in range(GENERATIONS):
            fresh = [p for p in dict.fromkeys(self._children(parents)) if p not in pool and self.space.fits(p)]
            pool.update(self._predicted(fresh))
            parents = sorted(pool, key=pool.__getitem__)[:PARENTS]
        for point in sorted(pool, key=pool.__getitem__):
            if point not in self._tried:
                yield Proposal(point, "guided")

    def _children(self, parents: Sequence[Point]) -> Iterator[Point]:
        for number in range(POOL):
            if not parents or number % 4 == 0:
                yield self.space.random(self._rng)
            elif number % 4 == 1:
                yield self.space.cross(self._rng.choice(parents), self._rng.choice(parents), self._rng)
            else:
                yield self.space.mutate(self._rng.choice(parents), self._rng)

    def _predicted(self, points: list[Point]) -> dict[Point, float]:
        assert self._model is not None
        return dict(zip(points, map(float, self._model.predict(self.subject, points)), strict=True)) if points else {}


class Repetition:
    """Takes the place of a layer's search to measure some points once more."""

    def __init__(self, search: LayerSearch, again: Sequence[Proposal]) -> None:
        self.subject, self.space = search.subject, search.space
        self._again = list(again)

    def observe(self, point: Point, time_us: float | None) -> None:
        pass

    def proposals(self) -> Iterator[Proposal]:
        while self._again:
            yield self._again.pop()


def _from_neighbours(subject: Subject, space: Space, records: Iterable[Record]) -> list[Point]:
    """What was best on the most similar layers, moved into this space."""
    groups = [group for group in by_key(records).values() if best(group) is not None]
    groups.sort(key=lambda group: distance(subject, group[0]))
    points: Counter[Point] = Counter()
    for group in groups[:NEIGHBOURS]:
        right = sorted((record for record in group if record.ok), key=lambda record: record.time_us or math.inf)
        for record in right[:FROM_EACH]:
            fitted = space.fitted(Point.of(record.template, record.knobs))
            if fitted is not None:
                points[fitted] += 1
    return [point for point, _ in points.most_common()]


def distance(subject: Subject, record: Record) -> float:
    """How unlike two layers are: the octaves between their sizes and densities."""
    ours, theirs = _sizes(subject.workload, subject.density), _sizes(record.workload, record.density)
    unlike = subject.workload.stride != record.workload.stride
    return sum(abs(math.log2(a / b)) for a, b in zip(ours, theirs, strict=True)) + unlike


def _sizes(workload: ConvWorkload, density: float) -> tuple[float, ...]:
    c, k, taps = workload.c_per_group, workload.k_per_group, workload.r * workload.s
    return workload.n, c, k, workload.p, workload.q, taps, workload.groups, max(density, 1e-3)
