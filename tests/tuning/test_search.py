"""The search proposes defaults first, nothing twice, and what the model favours; a replay is quicker than chance."""

from __future__ import annotations

import itertools
import math
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tuning.making import WORKLOAD, record
from tvm_sparse.targets import make_target
from tvm_sparse.tuning.cost_model import CostModel, Subject
from tvm_sparse.tuning.records import Record, Rows
from tvm_sparse.tuning.search import LayerSearch, distance
from tvm_sparse.tuning.space import LayerSpace, Point, estimator
from tvm_sparse.tvm_support import cuda_target
from tvm_sparse.workload import ConvWorkload

TARGET = make_target("llvm", threads=2)
SUBJECT = Subject(WORKLOAD, 0.1, Rows(57.0, 80, 1, ""))


def space(workload: ConvWorkload = WORKLOAD) -> LayerSpace:
    return LayerSpace(workload, 0.1, TARGET)


def search_of(model: CostModel | None, **settings: Any) -> LayerSearch:
    one = space()
    return LayerSearch(SUBJECT, one, model, starts=lambda: one.starts("sparse"), **settings)


def made_up_us(point: Point) -> float:
    """A time with one best point: every knob pulls towards a value of its own."""
    knobs = point.knobs
    away = abs(math.log2(int(knobs["rows"]) / 4)) + abs(math.log2(int(knobs["cols"]) / 16))
    away += abs(math.log2(int(knobs["channels"]) / 16)) + 1.5 * (knobs["format"] != "csr")
    return 50 * 2**away * (1 + 0.1 * (knobs["layout"] == "taps")) * int(knobs["k_parts"]) ** 0.3


def measured(point: Point, workload: ConvWorkload = WORKLOAD, **changes: object) -> Record:
    fields = {"workload": workload, "template": point.template, "knobs": point.knobs, "time_us": made_up_us(point)}
    return record(**{**fields, **changes})


def trials_to_within(search: LayerSearch, model: CostModel | None, goal_us: float, known: list[Record]) -> int:
    own: list[Record] = []
    while search.best_us > goal_us:
        if model is not None:
            model.fit([*known, *own])
        for proposal in itertools.islice(search.proposals(), 8):
            own.append(measured(proposal.point, source=proposal.source))
            search.observe(proposal.point, own[-1].time_us)
    return len(own)


def best_of(points: list[Point]) -> float:
    return min(map(made_up_us, points))


def test_defaults_come_first_then_neighbours_and_nothing_twice() -> None:
    one = space()
    winner = Point.of("cpu_vector", {**one.starts("sparse")[0].knobs, "rows": 16, "cols": 16, "channels": 8})
    smaller = ConvWorkload(1, 32, 14, 14, 32, 3, 3, padding=(1, 1, 1, 1))
    search = LayerSearch(
        SUBJECT,
        one,
        CostModel(),
        starts=lambda: one.starts("sparse"),
        neighbours=lambda: [measured(winner, smaller, time_us=1.0)],
        seed=1,
    )
    proposals = list(itertools.islice(search.proposals(), 200))
    assert len({proposal.point for proposal in proposals}) == 200
    assert proposals[0].point == one.starts("sparse")[0] and proposals[0].source == "default"
    sources = [proposal.source for proposal in proposals]
    assert sources[1] == "seed" and sources[2] == "transfer" and set(sources[3:]) == {"random"}
    assert proposals[2].point.knobs["rows"] == 14  # moved to the nearest that this layer has


def test_a_layer_that_runs_dense_untuned_starts_dense() -> None:
    assert space().starts("dense")[0] != space().starts("sparse")[0]
    assert set(space().starts("dense")) == set(space().starts("sparse"))


def test_guided_search_needs_far_fewer_trials_than_random() -> None:
    rng = Random(0)
    goal_us = 1.05 * best_of([space().random(rng) for _ in range(4000)])
    counts: dict[str, list[int]] = {"random": [], "guided": [], "transfer": []}
    other = ConvWorkload(1, 96, 14, 14, 48, 3, 3, padding=(1, 1, 1, 1))
    known = [measured(space(other).random(rng), other) for _ in range(200)]
    for seed in range(3):
        counts["random"].append(trials_to_within(search_of(None, seed=seed), None, goal_us, []))
        for name, records in (("guided", []), ("transfer", known)):
            model = CostModel(seed=seed)
            search = search_of(model, neighbours=lambda r=records: r, seed=seed)
            counts[name].append(trials_to_within(search, model, goal_us, records))
    means = {name: float(np.exp(np.mean(np.log(numbers)))) for name, numbers in counts.items()}
    assert means["random"] > 3 * means["guided"] and means["guided"] <= 128
    assert means["transfer"] <= means["guided"]


def test_a_small_space_is_exhausted() -> None:
    workload = ConvWorkload(1, 1, 1, 4, 1, 1, 1, groups=1)
    one = LayerSpace(workload, 1.0, TARGET)
    subject = Subject(workload, 1.0, SUBJECT.rows)
    search = LayerSearch(subject, one, None, starts=lambda: one.starts("dense"))
    points = [proposal.point for proposal in search.proposals()]
    assert len(points) == len(set(points)) and one.size * 0.9 <= len(points) <= one.size + 2


def test_failures_and_refusals_count_as_bad() -> None:
    rng = Random(3)
    points = [space().random(rng) for _ in range(120)]
    bad = [point for point in points if int(point.knobs["rows"]) > 6]
    good = [point for point in points if point not in bad]
    model = CostModel()
    assert not model.ready
    model.fit([measured(good[0])])
    assert not model.ready
    for point in bad[::2]:
        model.refuse(SUBJECT, point)
    failed = [measured(point, outcome="timeout", time_us=None) for point in bad[1::2]]
    model.fit([*(measured(point, time_us=50.0) for point in good), *failed])
    fresh = [space().random(rng) for _ in range(200)]
    predicted = model.predict(SUBJECT, fresh)
    high = np.array([int(point.knobs["rows"]) > 6 for point in fresh])
    assert predicted[high].mean() > predicted[~high].mean() + 1


def test_likely_points_are_the_best_by_rule_and_what_does_not_fit_is_left_out() -> None:
    one, rng = LayerSpace(WORKLOAD, 0.1, cuda_target("sm_90")), Random(1)
    drawn = [point for point in (one.random(rng) for _ in range(200)) if one.estimate_us(point) is not None]
    likely = [point for point in (one.likely(rng, 24) for _ in range(20)) if one.estimate_us(point) is not None]
    assert drawn and likely and max(map(one.estimate_us, likely)) < np.median([one.estimate_us(p) for p in drawn])
    assert not all(map(one.fits, drawn)) and all(map(one.fits, likely))
    pattern = [one.random(rng) for _ in range(50)]
    assert any(point.template == "cuda_pattern" and one.fits(point) for point in pattern)  # it has no rule


def test_a_filter_too_large_for_a_template_leaves_it_out() -> None:
    workload = ConvWorkload(1, 512, 14, 14, 512, 3, 3, padding=(1, 1, 1, 1))
    templates = [{LayerSpace(workload, density, cuda_target("sm_90")).random(Random(seed)).template
                  for seed in range(40)} for density in (0.005, 0.1)]  # fmt: skip
    assert templates[0] - templates[1] == {"cuda_pattern"}


def test_a_model_that_knows_estimates_ranks_better() -> None:
    rng, estimate = Random(2), estimator(cuda_target("sm_90"))
    one = LayerSpace(WORKLOAD, 0.1, cuda_target("sm_90"), estimate=estimate)
    points = [p for p in (one.random(rng) for _ in range(400)) if math.isfinite(one.estimate_us(p) or math.inf)]
    times = {p: float(one.estimate_us(p) or 0) * rng.uniform(1.0, 1.2) for p in points}
    seen, unseen = points[:24], points[24:]
    truth, errors = np.log2([times[p] for p in unseen]), []
    for model in (CostModel(), CostModel(estimate)):
        model.fit([record(workload=WORKLOAD, template=p.template, knobs=p.knobs, time_us=times[p]) for p in seen])
        predicted = model.predict(SUBJECT, unseen)
        errors.append(np.std(predicted - truth))
    assert errors[1] < 0.6 * errors[0]


@given(st.integers(0, 2**31), st.sampled_from(["llvm", "cuda"]))
def test_changed_points_stay_in_the_space(seed: int, kind: str) -> None:
    one = LayerSpace(WORKLOAD, 0.1, TARGET if kind == "llvm" else cuda_target("sm_90"))
    rng = Random(seed)
    point = one.random(rng)
    other, mutant = one.random(rng), one.mutate(point, rng)
    assert mutant != point and mutant.template == point.template
    assert 1 <= sum(mutant.knobs[knob] != value for knob, value in point.knobs.items()) <= 2
    child = one.cross(point, other, rng)
    assert all(child.knobs[knob] in (value, other.knobs.get(knob, value)) for knob, value in point.knobs.items())
    assert one.fitted(point) == point and one.fitted(Point.of("unheard", {})) is None


def test_points_of_a_version_with_other_knobs_lead_into_the_space() -> None:
    one, rng = space(), Random(1)
    point = one.random(rng)
    old = Point.of(point.template, dict(list(point.knobs.items())[1:]))
    assert one.fitted(old) is None
    assert all(set(one.mutate(old, rng).knobs) == set(one.random(rng).knobs) for _ in range(20))
    assert one.cross(point, old, rng) == point


def test_a_dropped_template_is_not_drawn() -> None:
    one = LayerSpace(WORKLOAD, 0.1, cuda_target("sm_90"))
    names = {one.random(Random(seed)).template for seed in range(60)}
    assert len(names) > 1 and "fallback" not in names
    one.drop("cuda_pixel")
    assert {one.random(Random(seed)).template for seed in range(60)} == names - {"cuda_pixel"}
    for name in names:
        one.drop(name)
    assert one.random(Random(0)).template in names  # the last one stays


@pytest.mark.parametrize(
    "further", [{"density": 0.05}, {"workload": ConvWorkload(1, 64, 14, 14, 32, 3, 3, (2, 2), (1, 1, 1, 1))}]
)
def test_distance(further: dict) -> None:
    assert distance(SUBJECT, record()) == 0 < distance(SUBJECT, record(**further))
