"""Who is timed in turn with the default, and when a candidate is faster beyond doubt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.tuning.making import SITE, record
from tests.tuning.small_session import small_layers
from tvm_sparse.tuning import measuring
from tvm_sparse.tuning.confirm import is_faster
from tvm_sparse.tuning.log_files import LogWriter, make_log
from tvm_sparse.tuning.measuring import Timing
from tvm_sparse.tuning.records import Record
from tvm_sparse.tuning.trials import Budget, TrialBook

ROUNDS = measuring.ROUNDS_IN_TURN


def noisy(factor: float, seed: int) -> Timing:
    """Times of a machine whose CPUs others take now and then."""
    rng = np.random.default_rng(seed)
    return Timing(tuple(factor * (100 + 5 * rng.random(ROUNDS)) + 4000 * (rng.random(ROUNDS) < 0.2)), 0.0, "cold")


@pytest.mark.parametrize(("factor", "fewest", "most"), [(0.8, 90, 100), (0.995, 0, 2), (1.0, 0, 1), (1.2, 0, 0)])
def test_only_what_is_clearly_faster_is_confirmed(factor: float, fewest: int, most: int) -> None:
    confirmed = sum(is_faster(noisy(factor, seed), noisy(1.0, 1000 + seed)) for seed in range(100))
    assert fewest <= confirmed <= most


def test_a_few_fast_rounds_and_no_rounds_are_no_proof() -> None:
    default = Timing((100.0,) * ROUNDS, 0.0, "cold")
    few = Timing((10.0,) * (ROUNDS // 2) + (101.0,) * (ROUNDS - ROUNDS // 2), 0.0, "cold")
    assert not is_faster(few, default) and not is_faster(Timing((), 1.0, "cold"), default)


def book_of(folder: Path, records: Sequence[Record]) -> TrialBook:
    layer = small_layers()[0]
    make_log(folder)
    known = [record(**{**vars(one), "workload": layer.workload, "density": layer.density}) for one in records]
    return TrialBook([layer], SITE, LogWriter(folder), Budget(), known, lambda tally: None)


def cold(rows: int, time_us: float, **changes: str) -> Record:
    return record(knobs={"rows": rows}, time_us=time_us, **{"timer": "cold", **changes})


DEFAULT = cold(0, 50.0, source="default")
FASTER = [cold(rows, 40.0 - rows) for rows in range(1, 7)]
LATER = {"date": "2026-01-02T00:00:00Z"}


@pytest.mark.parametrize(
    ("records", "rows"),
    [
        ([DEFAULT, *FASTER], [0, 6, 5, 4, 3]),
        ([DEFAULT, FASTER[0], cold(9, 60.0)], [0, 1, 9]),
        ([DEFAULT, cold(9, 60.0)], []),  # the default is the fastest
        (FASTER, []),
        ([cold(0, 50.0, source="default", timer="graph"), cold(1, 4.0, timer="graph")], []),
        ([DEFAULT, FASTER[0], cold(0, 60.0, source="default", confirmed="default", **LATER),
          cold(1, 70.0, confirmed="no", **LATER)], []),
        ([DEFAULT, FASTER[0], cold(0, 60.0, source="default", confirmed="default", **LATER),
          cold(9, 45.0, confirmed="yes", **LATER), FASTER[1]], [0, 2, 1, 9]),
    ],
)  # fmt: skip
def test_contenders(tmp_path: Path, records: list[Record], rows: list[int]) -> None:
    book = book_of(tmp_path, records)
    (layer,) = book.tallies
    assert [proposal.point.knobs["rows"] for proposal in book.contenders(layer)] == rows
