"""The tables of the record of trials."""

from __future__ import annotations

from pathlib import Path

from benchmarks.markdown import NOTHING
from benchmarks.records import record
from benchmarks.tuning_trials import trials


def test_a_record_becomes_tables(tmp_path: Path) -> None:
    path = tmp_path / "efficiency.json"
    assert trials(path) == NOTHING
    replays = {"random_replayed": 100.0, "model alone": 20.0, "guided": 10.25, "guided+transfer": 5.0}
    row = {"layer": "one", "workload": "n32 3x7x7 -> 8 1x1", "points": 200, "best_us": 4.5, "best_source": "guided",
           "random": 201.0, "random_reaches": False, "searched": 3, "searched_reaches": True, "searched_trials": 64,
           "over_best": 1.0, **replays}  # fmt: skip
    means = {"layer": "geometric mean", "workload": "", "random": 201.0, "searched": 3.0, "over_best": 1.0, **replays}
    record(path, [row, means], device="a GPU", within=1.05)
    text = trials(path)
    assert "| one | 32 | 4.50 us | 200 | > 201 | 3 | 64 | 1.00x |" in text and "tuning needs 67.0x fewer trials" in text
    assert "| one | 32 | 200 | 100.0 | 20.0 | 10.2 | 5.0 |" in text and "a GPU, within 5%" in text
    del row["searched"], row["searched_trials"], row["over_best"], means["searched"], means["over_best"]
    record(path, [row, means], device="a GPU", within=1.05)
    assert "| one | 32 | 4.50 us | 200 | > 201 |  |  |  |" in trials(path) and "tuning needs" not in trials(path)
