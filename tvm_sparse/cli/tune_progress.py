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
#: Bars that fit on a terminal; of more layers those of the latest trials are shown.
MOST_BARS = 24


@contextmanager
def tuning_progress(planned: int | None, minutes: float | None = None) -> Iterator[tuple[Begin, Told]]:
    """Yield (begin, progress) for tune(); `planned` trials a layer and `minutes` in all, where they are known."""
    if sys.stderr.isatty():
        with _bars(planned, minutes) as both:
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
def _bars(planned: int | None, minutes: float | None) -> Iterator[tuple[Begin, Told]]:
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
    shown: dict[Any, None] = {}  # in the order of their latest trials
    started = time.monotonic()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        clock = progress.add_task("time, s", total=60 * minutes, state="") if minutes is not None else None

        def begin(tallies: Sequence[Tally]) -> None:
            for tally in tallies:
                done, known = tally.trials, len(tallies) <= MOST_BARS
                state = describe(tally) if done else "waiting"
                name = tally.layer.name
                tasks[tally.layer] = progress.add_task(name, total=planned, completed=done, state=state, visible=known)
                shown.update({tally.layer: None} if known else {})

        def told(tally: Tally) -> None:
            shown.pop(tally.layer, None)
            shown[tally.layer] = None
            if len(shown) > MOST_BARS:
                oldest = next(iter(shown))
                shown.pop(oldest)
                progress.update(tasks[oldest], visible=False)
            progress.update(tasks[tally.layer], completed=tally.trials, state=describe(tally), visible=True)
            if clock is not None:
                progress.update(clock, completed=time.monotonic() - started)

        yield begin, told
