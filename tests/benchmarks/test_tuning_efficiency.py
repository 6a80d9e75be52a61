"""Replays of searches on a table of known times, and the list of layers that stands in for the networks."""

from __future__ import annotations

import itertools
import json
from random import Random

import pytest

from benchmarks.tune_networks import FILE, layers
from benchmarks.tuning_efficiency import (
    SEARCHES,
    WITHIN,
    TableSpace,
    compare,
    point_of,
    random_trials,
    replay,
    searched_trials,
    summarize,
)
from tests.tuning.making import record
from tests.tuning.test_search import measured, space
from tvm_sparse.tuning.cost_model import no_estimate
from tvm_sparse.tuning.records import Record
from tvm_sparse.tvm_support import cuda_target
from tvm_sparse.workload import ConvWorkload

WORKLOADS = [ConvWorkload(1, c, 14, 14, 32, 3, 3, padding=(1, 1, 1, 1)) for c in (64, 96)]


def table(workload: ConvWorkload) -> list[Record]:
    rng = Random(0)
    points = list(dict.fromkeys(space(workload).random(rng) for _ in range(150)))
    records = [measured(point, workload, layer=str(workload.c), source="random") for point in points]
    return [*records, record(workload=workload, outcome="timeout", knobs=records[0].knobs | {"rows": 99})]


def test_replay_finds_what_is_in_the_table_and_asks_nothing_else() -> None:
    first, second = map(table, WORKLOADS)
    replays = [replay(group, other, search, seed) for group, other in ((first, second), (second, first))
               for search in SEARCHES for seed in range(2)]  # fmt: skip
    fastest = min(one.time_us for one in first if one.time_us)
    assert all(1 <= one.trials <= len(first) and one.points == len(first) for one in replays)
    assert replays[0].best_us == fastest and WITHIN > 1
    *rows, means = summarize([compare(one, ()) for one in (first, second)], replays)
    assert [row["layer"] for row in rows] == ["64", "96"] and means["layer"] == "geometric mean"
    assert max(means[name] for name in SEARCHES) < means["random"] and "searched" not in means
    assert means["random"] == pytest.approx((rows[0]["random"] * rows[1]["random"]) ** 0.5)


@pytest.mark.parametrize(("fast", "expected"), [(0, 10.0), (1, 5.0), (4, 2.0), (9, 1.0)])
def test_what_random_order_needs(fast: int, expected: float) -> None:
    """Against the mean over all places where the first fast one can stand."""
    points = [record(knobs={"rows": n}, time_us=1.0 if n < fast else 9.0, source="random") for n in range(9)]
    default = record(knobs={"rows": 99}, time_us=1.0, source="default")
    assert random_trials([*points, default], 1.05) == expected
    if fast:
        orders = list(itertools.combinations(range(9), fast))
        assert expected == pytest.approx(sum(order[0] + 1 for order in orders) / len(orders))


def test_a_search_on_the_device_is_counted_by_points() -> None:
    times = [4.0, 3.0, 3.0, 1.04, 1.0]
    trials = [record(knobs={"rows": rows}, time_us=us) for rows, us in zip((1, 2, 2, 3, 4), times, strict=True)]
    assert searched_trials(trials, 1.05) == 3 and searched_trials(trials, 0.5) is None
    reference = [record(knobs={"rows": 5 + n}, time_us=2.0 + n, source="random") for n in range(9)]
    row = compare(reference, trials)
    assert (row["best_us"], row["points"], row["random"], row["random_reaches"]) == (1.0, 9, 10.0, False)
    assert (row["searched"], row["searched_trials"], row["over_best"]) == (3, 4, 1.0)
    slow = compare(trials, reference)
    assert (slow["searched"], slow["searched_reaches"], slow["over_best"]) == (10, False, 2.0)


def test_a_table_knows_its_nearest_point() -> None:
    records = table(WORKLOADS[0])
    known = TableSpace(records, no_estimate)
    point = point_of(records[7])
    assert known.fitted(point) == point and known.starts == [point_of(records[0])]
    assert known.fitted(point.of("unheard", point.knobs)) is None


def test_the_list_of_layers_has_every_network() -> None:
    rows = json.loads(FILE.read_text(encoding="utf-8"))
    assert {row["network"] for row in rows} == {"resnet50", "googlenet", "alexnet", "vgg16", "mobilenetv1"}
    assert sum(row["count"] for row in rows if row["network"] == "resnet50") == 53
    assert sum(row["count"] for row in rows if row["network"] == "googlenet") == 57 + 9  # merged ones


@pytest.mark.parametrize("sparsity", [0.9, 0.95])
def test_layers_are_drawn_as_sparse_as_asked(sparsity: float) -> None:
    drawn = layers(["resnet50:layer4.*", "resnet50:conv1"], [1, 2], [sparsity], cuda_target("sm_90"))
    first = [layer for layer in drawn if layer.name == "resnet50:conv1"]
    assert [layer.workload.n for layer in first] == [1, 2] and {layer.untuned for layer in first} == {"dense"}
    others = [layer for layer in drawn if layer not in first]
    strided = [layer for layer in others if layer.name == "resnet50:layer4.0.conv2"]
    by_phases = [layer for layer in strided if layer.workload.stride == (1, 1)]
    assert len(strided) == 2 * len(by_phases)
    assert {str(layer.workload)[3:] for layer in by_phases} == {"2048x7x7 -> 512 2x2 padding 1,1,0,0"}
    for layer in others:
        filled = 9 / 16 if layer in by_phases else 1
        assert abs(layer.density - filled * (1 - sparsity)) < 0.01 * filled
    assert all(layer.weight.shape == layer.workload.filter_shape for layer in drawn)
