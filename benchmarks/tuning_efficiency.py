"""Trials until tuning is within 5 % of the best known: of searches on a device, and replayed from a log without one.

    python -m benchmarks.tune_networks tune --target cuda --search random --only LAYERS --minutes 5 --log REFERENCE
    python -m benchmarks.tune_networks tune --target cuda --trials-per-layer 128 --only LAYERS --log SEARCHED
    python -m benchmarks.tuning_efficiency REFERENCE --searched SEARCHED

The best known is the fastest of both logs. Random search needs the trials to be expected of the reference's random
points in any order; the search on the device those that it took. Besides, every layer of the reference is a table of
points with known times on which searches are replayed, that may ask nothing else: the cost model alone, the search
with the defaults first, and the one that knows all other layers.
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
SEARCHES = ("model alone", "guided", "guided+transfer")
#: Trials of a layer that a search on the device may take.
MOST_TRIALS = 128


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
    model = CostModel(estimate, seed=seed)
    neighbours = others if search == "guided+transfer" else ()
    subject = Subject(first.workload, first.density, first.rows)
    table = TableSpace(group, estimate)
    starts = [] if search == "model alone" else table.starts
    found = LayerSearch(subject, table, model, starts=lambda: starts, neighbours=lambda: neighbours, seed=seed)
    tried: list[Record] = []
    while True:
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


def random_trials(group: Sequence[Record], goal_us: float) -> float:
    """Trials to be expected of the random points of a log, in any order, until one is as fast as `goal_us`.

    Where none is, one more than there are, which is too few.
    """
    drawn = [one for one in group if one.source == "random"]
    return (len(drawn) + 1) / (sum(_reaches(one, goal_us) for one in drawn) + 1)


def searched_trials(group: Sequence[Record], goal_us: float) -> int | None:
    """Which trial of a search, in the order of its log, was the first as fast as `goal_us`; None if none was."""
    return next((number for number, one in enumerate(_distinct(group), 1) if _reaches(one, goal_us)), None)


def compare(group: Sequence[Record], searched: Sequence[Record]) -> dict[str, Any]:
    """A row of a layer: what random search needs for the best known, and what the search on the device took."""
    fastest = best([*group, *searched])
    assert fastest is not None and fastest.time_us is not None
    goal_us, first = WITHIN * fastest.time_us, group[0]
    row = {
        "layer": first.layer,
        "workload": str(first.workload),
        "points": sum(one.source == "random" for one in group),
        "best_us": fastest.time_us,
        "best_source": fastest.source,
        "random": random_trials(group, goal_us),
        "random_reaches": any(_reaches(one, goal_us) for one in group if one.source == "random"),
    }
    within = best(_distinct(searched)[:MOST_TRIALS])
    if within is None or within.time_us is None:
        return row
    trials = searched_trials(searched, goal_us)
    return {
        **row,
        "searched": trials if trials is not None else len(_distinct(searched)) + 1,
        "searched_reaches": trials is not None,
        "searched_trials": len(_distinct(searched)),
        "over_best": within.time_us / fastest.time_us,
    }


def summarize(rows: Sequence[dict[str, Any]], replays: Sequence[Replay]) -> list[dict[str, Any]]:
    """The rows with the trials of each replay, averaged over seeds, and one of geometric means."""
    whole = []
    for row in rows:
        own = [one for one in replays if one.workload == row["workload"]]
        trials = {name: geometric_mean([one.trials for one in own if one.search == name]) for name in SEARCHES}
        whole.append({**row, **trials})
    columns = [name for name in ("random", "searched", "over_best", "random_replayed", *SEARCHES)
               if all(name in row for row in whole)]  # fmt: skip
    means = {name: geometric_mean([row[name] for row in whole]) for name in columns}
    return [*whole, {"layer": "geometric mean", "workload": "", **means}]


def _reaches(one: Record, goal_us: float) -> bool:
    return one.ok and one.time_us is not None and one.time_us <= goal_us


def _distinct(records: Sequence[Record]) -> list[Record]:
    """The first record of every point: a trial that is measured once more is one trial."""
    return list({one.point: one for one in reversed(records)}.values())[::-1]


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
    parser.add_argument("log", type=Path, nargs="+", help="logs of random searches")
    parser.add_argument("--searched", type=Path, help="log of a search on the same layers, from an empty log")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=RESULTS / "tuning_efficiency.json")
    options = parser.parse_args()
    records = deduplicated(one for log in options.log for one in read_log(log).records)
    searched = by_key(read_log(options.searched).records) if options.searched else {}
    estimate: Estimate = no_estimate
    if records and records[0].site.arch.startswith("sm_"):
        estimate = estimator(cuda_target(records[0].site.arch))
    groups = {key: group for key, group in by_key(records).items() if len(group) >= FEWEST and best(group)}
    if not groups:
        parser.error(f"no layer of {', '.join(map(str, options.log))} has {FEWEST} trials")
    replays, rows = [], []
    for key, group in groups.items():
        others = [one for one in records if one.workload != group[0].workload]
        fastest = best(group)
        assert fastest is not None and fastest.time_us is not None
        replayed = random_trials(group, WITHIN * fastest.time_us)
        rows.append({**compare(group, searched.get(key, ())), "random_replayed": replayed})
        for search in SEARCHES:
            replays += [replay(group, others, search, seed, estimate) for seed in range(options.seeds)]
            print(replays[-1], flush=True)
    rows = summarize(rows, replays)
    for row in rows:
        print(*(f"{name} {value:.3g}" if isinstance(value, float) else f"{value}" for name, value in row.items()))
    site = next(iter(groups.values()))[0].site
    conditions = {"within": WITHIN, "batch": BATCH, "seeds": options.seeds, "most_trials": MOST_TRIALS}
    record(options.json, rows, device=site.device, arch=site.arch, **conditions)


if __name__ == "__main__":
    main()
