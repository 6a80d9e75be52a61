"""Figures and tables as Markdown, alike on every page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

NOTHING = "Not measured yet."
_UNITS = {"x": "x", "us": " us", "%": " %", "bytes": " bytes", "": ""}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, or a word that there is none."""
    if not rows:
        return NOTHING
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def cudnn_version(number: int | None) -> str:
    """As people write it: 91900 is 9.19.0."""
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}" if number else "missing"


def microseconds(us: float | None) -> str:
    return "" if us is None else f"{us:.2f} us" if us < 10 else f"{us:.1f} us" if us < 100 else f"{us:.0f} us"


def times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.1f}x"


def goal_rows(goals: Iterable[Any], report: Any) -> list[list[str]]:
    """What was to be reached and what is: gpu_layers.goals.Goal each, and what its figure is computed from."""
    from benchmarks.gpu_layers.goals import verdict

    rows = []
    for goal in goals:
        found = goal.find(report)
        hope = "" if goal.hope is None else _limit(goal, goal.hope)
        rows.append([goal.what, _limit(goal, goal.want), hope, _value(goal, found.value), verdict(goal, found)])
    return rows


GOAL_HEAD = ("goal", "wanted", "hoped for", "measured", "")


def _limit(goal: Any, limit: float) -> str:
    return f"{'≤' if goal.at_most else '≥'} {limit:g}{_UNITS[goal.unit]}"


def _value(goal: Any, value: float | None) -> str:
    if value is None:
        return ""
    if goal.unit in ("", "bytes"):
        return f"{value:.2g}{_UNITS[goal.unit]}"
    return f"{value:.{0 if goal.unit == '%' else 2}f}{_UNITS[goal.unit]}"
