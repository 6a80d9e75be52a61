"""Best, doubles and what pruning keeps."""

from __future__ import annotations

from tests.tuning.making import SITE, WORKLOAD, record
from tvm_sparse.tuning.records import Site
from tvm_sparse.tuning.selection import best, by_key, deduplicated, pruned

FAST = record(time_us=10.0, knobs={"rows": 1})
SLOW = record(time_us=30.0, knobs={"rows": 2}, source="default")
DENSE = record(time_us=20.0, knobs={"rows": 3}, kind="dense")
WRONG = record(outcome="wrong", knobs={"rows": 4})


def test_best_is_right_and_of_the_kind() -> None:
    records = [SLOW, WRONG, FAST, DENSE]
    assert best(records) is FAST and best(records, "dense") is DENSE and best([WRONG]) is None


def test_keys_are_site_shape_and_density_class() -> None:
    others = [
        record(density=0.05),
        record(site=Site("llvm-avx512", SITE.arch, 4)),
        record(workload=WORKLOAD.flattened().__class__(1, 64, 14, 14, 32, 3, 3)),
    ]
    same = record(density=0.104)
    groups = by_key([FAST, *others, same])
    assert [len(group) for group in groups.values()] == [2, 1, 1, 1]


def test_of_doubles_the_fastest_right_one_stays() -> None:
    failed, again = record(outcome="timeout", knobs={"rows": 1}), record(time_us=11.0, knobs={"rows": 1})
    assert deduplicated([failed, again, FAST, WRONG]) == [FAST, WRONG]
    assert deduplicated([FAST, failed]) == [FAST]
    assert deduplicated([failed, record(outcome="wrong", knobs={"rows": 1})])[0].outcome == "wrong"


def test_what_was_timed_in_turn_with_the_default_has_the_last_word() -> None:
    early, late = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"
    default = record(time_us=50.0, knobs={"rows": 2}, source="default", confirmed="default", date=late)
    winner = record(time_us=40.0, knobs={"rows": 3}, kind="dense", confirmed="yes", date=late)
    loser = record(time_us=39.0, knobs={"rows": 1}, confirmed="no", date=late)
    old = record(time_us=5.0, knobs={"rows": 5}, confirmed="yes", date=early)
    assert best([SLOW, FAST, DENSE]) is FAST
    assert best([SLOW, FAST, DENSE, default, loser]) is default
    assert best([old, default, FAST, loser, winner]) is winner and best([FAST, default, winner], "sparse") is default
    assert best([FAST, default, loser], "dense") is None
    assert deduplicated([SLOW, FAST, loser, DENSE, default, winner]) == [default, loser, winner]
    assert deduplicated([loser, FAST]) == [loser]
    again = record(time_us=60.0, knobs={"rows": 5}, confirmed="no", date=late)
    assert deduplicated([old, again]) == [again] == deduplicated([again, old])
    assert best(pruned([SLOW, FAST, default, loser, winner], 1)) is winner


def test_times_of_kernels_that_overlapped_compare_with_no_others() -> None:
    overlapped, alone = record(time_us=5.0, timer="overlap"), record(time_us=4.0, timer="graph", knobs={"rows": 3})
    dense = record(time_us=3.0, timer="graph", kind="dense")
    assert best([alone, overlapped, dense]) is overlapped
    assert best([alone, overlapped, dense], "dense") is None
    assert best([alone, dense], "dense") is dense


def test_pruning_keeps_the_fastest_the_default_and_one_of_each_kind() -> None:
    middling = [record(time_us=11.0 + n, knobs={"rows": 10 + n}) for n in range(5)]
    assert pruned([WRONG, SLOW, *middling, DENSE, FAST], 2) == [FAST, middling[0], DENSE, SLOW]
