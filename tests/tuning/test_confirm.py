"""Who is timed in turn with the default, and when a candidate is faster beyond doubt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.tuning.making import SITE, record
from tests.tuning.small_session import small_layers
from tvm_sparse.targets import make_target
from tvm_sparse.tuning import candidates
from tvm_sparse.tuning.candidates import Timing
from tvm_sparse.tuning.confirm import is_faster
from tvm_sparse.tuning.inputs import prepare
from tvm_sparse.tuning.log_files import LogWriter, make_log
from tvm_sparse.tuning.records import Record
from tvm_sparse.tuning.trials import Budget, TrialBook
from tvm_sparse.tuning.tuner import starts

ROUNDS = candidates.ROUNDS_IN_TURN


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


def clocked(rows: int, time_us: float, **changes: str) -> Record:
    return record(knobs={"rows": rows}, time_us=time_us, **{"timer": "clock", **changes})


DEFAULT = clocked(0, 50.0, source="default")
FASTER = [clocked(rows, 40.0 - rows) for rows in range(1, 7)]
COLD = {"timer": "cold", "date": "2026-01-02T00:00:00Z"}


@pytest.mark.parametrize(
    ("records", "rows"),
    [
        ([DEFAULT, *FASTER], [0, 6, 5, 4, 3]),
        ([DEFAULT, FASTER[0], clocked(9, 60.0)], [0, 1, 9]),
        ([DEFAULT, clocked(9, 60.0)], []),  # the default is the fastest
        (FASTER, []),
        ([clocked(0, 50.0, source="default", timer="graph"), clocked(1, 4.0, timer="graph")], []),
        ([DEFAULT, FASTER[0], clocked(0, 60.0, source="default", confirmed="default", **COLD),
          clocked(1, 70.0, confirmed="no", **COLD)], []),
        ([DEFAULT, FASTER[0], clocked(0, 60.0, source="default", confirmed="default", **COLD),
          clocked(9, 45.0, confirmed="yes", **COLD), FASTER[1]], [0, 2, 1, 9]),
    ],
)  # fmt: skip
def test_contenders(tmp_path: Path, records: list[Record], rows: list[int]) -> None:
    book = book_of(tmp_path, records)
    (layer,) = book.tallies
    assert [proposal.point.knobs["rows"] for proposal in book.contenders(layer)] == rows


def test_candidates_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, target, folder = small_layers()[0], make_target("llvm", threads=1), str(tmp_path)
    np.save(tmp_path / "weight.npy", layer.weight)
    prepare(folder, layer.workload, 0)
    points = starts(layer.workload, layer.density, target, "sparse")[:2]
    files = [str(tmp_path / str(number)) for number in range(3)]
    for name, point in zip(files, [*points, points[0]], strict=True):
        assert candidates.make(name, folder, layer.workload, target, (), point.template, point.knobs)[0]
    with np.load(f"{files[2]}.npz") as packed:
        arrays = {name: packed[name] * (1.001 if packed[name].dtype == np.float32 else 1) for name in packed.files}
    np.savez(f"{files[2]}.npz", **arrays)
    monkeypatch.setattr(candidates, "_last", None)
    one, two, wrong = candidates.measure_in_turn(files, folder, layer.workload)
    assert len(one.times_us) == len(two.times_us) == ROUNDS and {one.timer, two.timer} == {"cold"}
    assert max(one.error, two.error) < 1e-5 < wrong.error and wrong.times_us == ()
    monkeypatch.setattr(candidates, "MOST_IN_TURN_S", 0.0)
    monkeypatch.setattr(candidates, "_last", None)
    brief = candidates.measure_in_turn(files[:2], folder, layer.workload)
    assert [len(timing.times_us) for timing in brief] == [candidates.FEWEST_IN_TURN] * 2
