"""What the commands print: tables and JSON on stdout, progress on stderr; plain when piped."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tvm_sparse.files import replacing

Progress = Callable[[str, float], None]
PLAIN_WIDTH = 100_000  # piped: wider than any row, so that nothing is wrapped or cut


def show_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows, each {column name: value}; numbers to the right. Without a terminal: spaces only, one line a row."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        print("none")
        return
    terminal = sys.stdout.isatty()
    table = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=False, padding=(0, 1))
    for name in rows[0]:
        numeric = all(isinstance(row[name], int | float) and not isinstance(row[name], bool) for row in rows)
        table.add_column(Text(name), justify="right" if numeric else "left", overflow="fold", no_wrap=not terminal)
    for row in rows:
        table.add_row(*(Text(cell(value)) for value in row.values()))
    Console(file=sys.stdout, width=None if terminal else PLAIN_WIDTH, soft_wrap=False).print(table)


def show_records(records: Sequence[Any], columns: Sequence[str] = ()) -> None:
    """Print dataclasses of one kind as a table: a column for each of `columns`, by default for every field."""
    names = columns or [field.name for record in records[:1] for field in dataclasses.fields(record)]
    show_table([{name.replace("_", " "): getattr(record, name) for name in names} for record in records])


def show_report(report: Any) -> None:
    """Print a dataclass as `name: value` lines, its lists of dataclasses as tables before them."""
    values = {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
    tables = {name for name, value in values.items() if _is_records(value)}
    for name in tables:
        show_records(values[name])
    show_pairs({name.replace("_", " "): value for name, value in values.items() if name not in tables})


def show_pairs(pairs: Mapping[str, Any]) -> None:
    """Print `name: value` lines; a mapping's entries are indented below its name."""
    for name, value in pairs.items():
        if isinstance(value, Mapping):
            print(f"{name}:")
            print("\n".join(f"  {key}: {cell(item)}" for key, item in value.items()) or "  none")
        else:
            print(f"{name}: {cell(value)}")


def _is_records(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(map(dataclasses.is_dataclass, value))


def cell(value: Any) -> str:
    """A value as a person reads it: 1×3×224×224, yes, 12,345, 0.9012."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 or not math.isfinite(value) else f"{value:,.0f}"
    if isinstance(value, tuple | list):
        between = "×" if all(isinstance(item, int) for item in value) else ", "
        return between.join(map(str, value)) or "none"
    return "–" if value is None else str(value)


def size(count_bytes: int) -> str:
    """A size in bytes, with a readable one beside it."""
    unit, scale = next(((name, 1000**k) for k, name in ((2, "MB"), (1, "kB")) if count_bytes >= 1000**k), ("bytes", 1))
    exact = f"{count_bytes:,} bytes"
    return exact if scale == 1 else f"{exact} ({count_bytes / scale:.1f} {unit})"


def to_json(value: Any) -> str:
    """`value` (dataclasses, mappings, sequences, numpy scalars) as JSON; what is not finite becomes null."""
    return json.dumps(_plain(value), indent=2, allow_nan=False, ensure_ascii=False)


def write_json(value: Any, destination: Path | None) -> bool:
    """Write `value` to a file if one is named; `-` prints it, and True says that nothing else may be printed."""
    if destination is None:
        return False
    if str(destination) == "-":
        print(to_json(value))
        return True
    with replacing(destination) as path:
        path.write_text(f"{to_json(value)}\n", encoding="utf-8")
    return False


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool) or value is None else str(value)


@contextmanager
def progress() -> Iterator[Progress]:
    """Yield `report(stage, fraction)`: a bar where stderr is a terminal, else a line per stage."""
    if not sys.stderr.isatty():
        seen: list[str] = []

        def line(stage: str, fraction: float) -> None:
            if stage not in seen:
                seen.append(stage)
                print(f"{stage} …", file=sys.stderr, flush=True)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    text = TextColumn("{task.description}", markup=False)
    with Bar(text, BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda stage, fraction: bar.update(task, description=stage, completed=fraction)
