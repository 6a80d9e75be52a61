"""Fair timing of several callables on a shared machine: interleaved, medians of paired ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

#: Thread pools spin for a while after a run. Each candidate starts after they have gone to sleep, and warm.
PAUSE_S = 0.02
WARM_UPS = 2
RUNS = 3


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call, one figure a round (the median of RUNS calls)."""

    rounds_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        return statistics.median(self.rounds_ms)

    @property
    def min_ms(self) -> float:
        return min(self.rounds_ms)


def interleave(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Time every candidate once in every round, in turn, so that a slow phase of the machine hits all of them."""
    figures: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            time.sleep(PAUSE_S)
            for _ in range(WARM_UPS):
                call()
            samples = []
            for _ in range(RUNS):
                begin = time.perf_counter()
                call()
                samples.append((time.perf_counter() - begin) * 1e3)
            figures[name].append(statistics.median(samples))
    return {name: Timing(tuple(values)) for name, values in figures.items()}


def paired_ratio(slow: Timing, fast: Timing) -> float:
    """How many times faster `fast` is: the median over the rounds of the ratio within a round."""
    return statistics.median(s / f for s, f in zip(slow.rounds_ms, fast.rounds_ms, strict=True))
