"""Replays of searches on a table of known times, and the list of layers that stands in for the networks."""

from __future__ import annotations

import json
from random import Random

import pytest

from benchmarks.tune_networks import FILE, layers
from benchmarks.tuning_efficiency import SEARCHES, WITHIN, TableSpace, point_of, replay, summarize
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
    records = [measured(point, workload, layer=str(workload.c)) for point in points]
    return [*records, record(workload=workload, outcome="timeout", knobs=records[0].knobs | {"rows": 99})]


def test_replay_finds_what_is_in_the_table_and_asks_nothing_else() -> None:
    first, second = map(table, WORKLOADS)
    replays = [replay(group, other, search, seed) for group, other in ((first, second), (second, first))
               for search in SEARCHES for seed in range(2)]  # fmt: skip
    fastest = min(one.time_us for one in first if one.time_us)
    assert all(1 <= one.trials <= len(first) and one.points == len(first) for one in replays)
    assert replays[0].best_us == fastest and WITHIN > 1
    *rows, means = summarize(replays)
    assert [row["layer"] for row in rows] == ["64", "96"] and means["layer"] == "geometric mean"
    assert means["guided"] < means["random"]
    assert min(rows[0]["random"], rows[1]["random"]) <= means["random"] <= max(rows[0]["random"], rows[1]["random"])


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
    assert others and all(abs(layer.density - (1 - sparsity)) < 0.01 for layer in others)
    assert all(layer.weight.shape == layer.workload.filter_shape for layer in drawn)
