"""How tuning is shown while it runs: a bar a layer on a terminal, a line now and then where stderr is piped."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvm_sparse.tuning.trials import Tally

Begin = Callable[[Sequence[Any]], None]
Told = Callable[[Any], None]
#: Piped: a line for a layer at most so often, in seconds.
LINE_EVERY_S = 10.0


@contextmanager
def tuning_progress(planned: int | None) -> Iterator[tuple[Begin, Told]]:
    """Yield (begin, progress) for tune(); `planned` trials a layer, if that is known."""
    if sys.stderr.isatty():
        with _bars(planned) as both:
            yield both
        return
    yield _lines()


def describe(tally: Tally) -> str:
    """The state of a layer in a few words."""
    default = next((one.time_us for one in tally.records if one.ok and one.source == "default"), None)
    best = f"{tally.best_us:.4g} µs" if math.isfinite(tally.best_us) else "nothing yet"
    gain = f", {default / tally.best_us:.2f}x the default" if default and math.isfinite(tally.best_us) else ""
    return f"best {best}{gain}"


def _lines() -> tuple[Begin, Told]:
    last: dict[Any, float] = {}

    def begin(tallies: Sequence[Tally]) -> None:
        print(f"tuning {len(tallies)} layers …", file=sys.stderr, flush=True)

    def told(tally: Tally) -> None:
        now = time.monotonic()
        if now - last.get(tally.layer, -math.inf) >= LINE_EVERY_S:
            last[tally.layer] = now
            line = f"{tally.layer.name}: {tally.trials} trials, {describe(tally)}"
            print(line, file=sys.stderr, flush=True)

    return begin, told


@contextmanager
def _bars(planned: int | None) -> Iterator[tuple[Begin, Told]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}", markup=False),
        TimeElapsedColumn(),
        Remaining(),
    )
    tasks: dict[Any, Any] = {}
    with Progress(*columns, console=Console(stderr=True)) as progress:

        def begin(tallies: Sequence[Tally]) -> None:
            for tally in tallies:
                done = tally.trials
                state = describe(tally) if done else "waiting"
                tasks[tally.layer] = progress.add_task(tally.layer.name, total=planned, completed=done, state=state)

        def told(tally: Tally) -> None:
            progress.update(tasks[tally.layer], completed=tally.trials, state=describe(tally))

        yield begin, told
