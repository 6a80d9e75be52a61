"""The table of docs/tuning.md about the trials that a search takes, from the record of benchmarks.tuning_efficiency."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.markdown import NOTHING, microseconds, table, times
from benchmarks.records import RESULTS

RECORD = RESULTS / "tuning_efficiency.json"
HEAD = (
    "layer",
    "batch",
    "best known",
    "random trials",
    "random needs",
    "tuning needed",
    "of trials",
    "its best over the best",
)
REPLAYED = ("layer", "batch", "points", "random", "model alone", "with defaults first", "and other layers' records")


def trials(path: Path = RECORD) -> str:
    """Searches on the device beside random order, then replays on the table of what random search measured."""
    if not path.exists():
        return NOTHING
    report = json.loads(path.read_text())
    rows = report["results"]
    means = rows[-1]
    words = (
        f"{report['device']}, within {report['within'] - 1:.0%}. A random search that had no point so fast is taken to "
        "need one trial more than it had."
    )
    if "searched" in means:
        words += f" By geometric means tuning needs {times(means['random'] / means['searched'])} fewer trials."
    replays = "Replayed on the random points and the defaults alone, trials to within 5 % of the best of these:"
    return "\n\n".join(
        [table(HEAD, [_row(row) for row in rows]), words, replays, table(REPLAYED, [_replay(row) for row in rows])]
    )


def _row(row: dict[str, Any]) -> list[str]:
    return [
        row["layer"],
        _batch(row),
        microseconds(row.get("best_us")),
        str(row.get("points", "")),
        _count(row["random"], row.get("random_reaches", True)),
        _count(row.get("searched"), row.get("searched_reaches", True)),
        str(row.get("searched_trials", "")),
        times(row.get("over_best")),
    ]


def _replay(row: dict[str, Any]) -> list[str]:
    names = ("random_replayed", "model alone", "guided", "guided+transfer")
    return [row["layer"], _batch(row), str(row.get("points", "")), *(f"{row[name]:.1f}" for name in names)]


def _batch(row: dict[str, Any]) -> str:
    """The batch, which a workload's text begins with."""
    return row["workload"].split()[0][1:] if row["workload"] else ""


def _count(number: float | None, reached: bool) -> str:
    return "" if number is None else f"{'' if reached else '> '}{number:.3g}"


BLOCKS = {"tuning-trials": trials}
