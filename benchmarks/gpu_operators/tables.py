"""The table of docs/gpu-performance.md about operators that stay dense, from the record."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from benchmarks.markdown import NOTHING, microseconds, table, times

RECORD = Path(__file__).parents[1] / "results" / "gpu_operators.json"
_HEAD = ("operator", "batch", "ours", "torch float32", "over torch", "share of bound", "kernels", "error")


def operators(path: Path = RECORD) -> str:
    """Every operator beside torch's, with a cold L2 cache where that was timed too."""
    if not path.exists():
        return NOTHING
    report = json.loads(path.read_text())
    rows = [_row(result) for result in report["results"]]
    environment, conditions = report["environment"], report["conditions"]
    gpus = (environment.get("cuda") or {}).get("gpus") or [conditions["device"]]
    versions = f"apache-tvm {environment['packages']['apache-tvm']}, torch {conditions['torch']}"
    return "\n\n".join(
        [table(_HEAD, rows), f"{conditions['date']}, {gpus[0]}; {versions}; commit {environment['commit']}."]
    )


def _row(result: dict[str, Any]) -> list[str]:
    ours, peer, bound = result["ours_us"], result["peer_us"], result["bound_us"]
    return [
        result["operator"],
        str(result["batch"]),
        _time(ours, result["cold_us"]),
        _time(peer, result["peer_cold_us"]),
        times(peer / ours) if ours and peer else "",
        f"{bound / ours:.0%}" if ours and bound else "",
        str(result["kernels"]),
        f"{result['error']:.0e}" if result["error"] is not None else result["note"],
    ]


def _time(warm: float | None, cold: float | None) -> str:
    return microseconds(warm) + (f" (cold {microseconds(cold)})" if cold else "")


def finite(row: dict[str, Any]) -> dict[str, Any]:
    """A row with None where there is no number, as JSON wants it."""
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}


BLOCKS = {"gpu-operators": operators}
