"""Trials until tuning is within 5 % of the best known, replayed from a log without any device.

    tvm-sparse tune MODEL --search random --trials-per-layer 400 --log REFERENCE     # once, on the device
    python -m benchmarks.tuning_efficiency REFERENCE --json FILE

Every layer of the log with enough records is a table of points with known times; the searches may only ask the table.
Compared are random order, search guided by a model that starts from nothing, and one that knows all other layers.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.records import RESULTS, record
from tvm_sparse.tuning.cost_model import CostModel, Subject, no_estimate
from tvm_sparse.tuning.log_files import read_log
from tvm_sparse.tuning.records import Record
from tvm_sparse.tuning.search import LayerSearch
from tvm_sparse.tuning.selection import best, by_key, deduplicated
from tvm_sparse.tuning.space import Estimate, Point, estimator
from tvm_sparse.tvm_support import cuda_target

WITHIN = 1.05
BATCH = 8
FEWEST = 100
SEARCHES = ("random", "guided", "guided+transfer")


class TableSpace:
    """The points of a layer that a log knows, in place of all there are."""

    def __init__(self, records: Sequence[Record], estimate: Estimate) -> None:
        self._layer, self._estimate = (records[0].workload, records[0].density), estimate
        self._points = [point_of(one) for one in records]
        default = next((one for one in records if one.source == "default"), records[0])
        seeds = [point_of(one) for one in records if one.source in ("default", "seed")]
        self.starts = list(dict.fromkeys([point_of(default), *seeds]))

    def fits(self, point: Point) -> bool:
        """Whatever stands in the table was tried."""
        return True

    def likely(self, rng: Random, draws: int) -> Point:
        """As LayerSpace.likely."""
        first = self.random(rng)
        if self._estimate(*self._layer, first) is None:
            return first
        points = [point for point in rng.choices(self._points, k=draws) if point.template == first.template]
        return min([first, *points], key=lambda point: self._estimate(*self._layer, point) or 0.0)

    def random(self, rng: Random) -> Point:
        return rng.choice(self._points)

    def mutate(self, point: Point, rng: Random) -> Point:
        return self.random(rng)

    def cross(self, one: Point, other: Point, rng: Random) -> Point:
        return self.random(rng)

    def fitted(self, point: Point) -> Point | None:
        """The known point that differs least."""
        same = [one for one in self._points if one.template == point.template]
        return min(same, key=lambda one: _difference(one, point), default=None)

    def drop(self, template: str) -> None:
        """Every point here has run."""


@dataclass(frozen=True)
class Replay:
    """One search on one layer: how many trials it took, and what the table holds."""

    layer: str
    workload: str
    search: str
    seed: int
    trials: int
    points: int
    best_us: float


def point_of(one: Record) -> Point:
    return Point.of(one.template, one.knobs)


def replay(
    group: Sequence[Record], others: Sequence[Record], search: str, seed: int, estimate: Estimate = no_estimate
) -> Replay:
    """Search the table of a layer until a point within 5 % of its best is found."""
    first = group[0]
    fastest = best(group)
    assert fastest is not None and fastest.time_us is not None
    known = {point_of(one): one for one in group}
    model = None if search == "random" else CostModel(estimate, seed=seed)
    neighbours = others if search == "guided+transfer" else ()
    subject = Subject(first.workload, first.density, first.rows)
    table = TableSpace(group, estimate)
    found = LayerSearch(subject, table, model, starts=lambda: table.starts, neighbours=lambda: neighbours, seed=seed)
    if search == "random":  # the plain order of a table, without the defaults first
        found.skip_starts()
    tried: list[Record] = []
    while True:
        if model is not None:
            model.fit([*neighbours, *tried])
        batch = list(itertools.islice(found.proposals(), BATCH))
        assert batch, "the search gave up before it had asked for every point"
        for proposal in batch:
            result = known[proposal.point]
            tried.append(result)
            found.observe(proposal.point, result.time_us if result.ok else None)
            if result.ok and result.time_us is not None and result.time_us <= WITHIN * fastest.time_us:
                return Replay(first.layer, str(first.workload), search, seed, len(tried), len(known), fastest.time_us)


def geometric_mean(numbers: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, numbers)) / len(numbers))


def summarize(replays: Sequence[Replay]) -> list[dict[str, Any]]:
    """A row per layer, and one of geometric means: trials of each search, averaged over seeds."""
    rows = []
    for workload in dict.fromkeys(one.workload for one in replays):
        own = [one for one in replays if one.workload == workload]
        trials = {name: geometric_mean([one.trials for one in own if one.search == name]) for name in SEARCHES}
        rows.append({"layer": own[0].layer, "workload": workload, "points": own[0].points, **trials})
    means = {name: geometric_mean([row[name] for row in rows]) for name in SEARCHES}
    return [*rows, {"layer": "geometric mean", "workload": "", "points": None, **means}]


def _difference(one: Point, other: Point) -> float:
    ours, theirs = one.knobs, other.knobs
    total = 0.0
    for knob, value in ours.items():
        known = theirs.get(knob)
        if isinstance(value, int) and isinstance(known, int):
            total += abs(math.log2((value + 0.5) / (known + 0.5)))
        else:
            total += 2.0 * (value != known)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=RESULTS / "tuning_efficiency.json")
    options = parser.parse_args()
    records = deduplicated(read_log(options.log).records)
    estimate: Estimate = no_estimate
    if records and records[0].site.arch.startswith("sm_"):
        estimate = estimator(cuda_target(records[0].site.arch))
    groups = [group for group in by_key(records).values() if len(group) >= FEWEST and best(group)]
    replays = []
    for group in groups:
        others = [one for one in records if one.workload != group[0].workload]
        for search in SEARCHES:
            replays += [replay(group, others, search, seed, estimate) for seed in range(options.seeds)]
            print(search, replays[-1], flush=True)
    rows = summarize(replays)
    for row in rows:
        print(row["layer"], row["workload"], *(f"{name} {row[name]:.1f}" for name in SEARCHES), sep="  ")
    site = groups[0][0].site
    record(options.json, rows, device=site.device, arch=site.arch, within=WITHIN, batch=BATCH, seeds=options.seeds)


if __name__ == "__main__":
    main()
