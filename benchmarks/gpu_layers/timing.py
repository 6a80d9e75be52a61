"""How a time is taken and stated, apart from the GPU: how many launches, and the spread of the samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

#: Sets of input and output, and copies of a kernel's code, that launches rotate over: neighbours share neither.
COPIES = 4
#: Launches in a graph and samples (replays of it) of a short kernel; the fewest of a long one.
LAUNCHES, SAMPLES = 24, 21
FEWEST_LAUNCHES, FEWEST_SAMPLES = 12, 5
#: Time that the samples of one measurement may take.
BUDGET_US = 400_000.0

#: Launches a kernel once with the i-th set of data.
Launch = Callable[[int], object]


@dataclass(frozen=True)
class Timing:
    """Microseconds per launch over `samples` means of `launches` each.

    `method` is "graph" or "events"; `clock_mhz` is that of the SMs just before, 0 if unknown.
    """

    median_us: float
    p10_us: float
    p90_us: float
    samples: int
    launches: int
    method: str
    clock_mhz: int = 0

    @classmethod
    def of(cls, samples_us: Sequence[float], launches: int, method: str, clock_mhz: float = 0) -> Timing:
        """From the time of each sample, all its launches together."""
        each = np.asarray(samples_us) / launches
        p10, median, p90 = (round(float(value), 4) for value in np.percentile(each, (10, 50, 90)))
        return cls(median, p10, p90, len(each), launches, method, round(clock_mhz))


@dataclass(frozen=True)
class Plan:
    launches: int
    samples: int


def plan(estimate_us: float, budget_us: float = BUDGET_US) -> Plan:
    """As many launches and samples as the budget allows, between the bounds above."""
    launches = LAUNCHES if estimate_us * LAUNCHES * SAMPLES <= budget_us else FEWEST_LAUNCHES
    samples = int(budget_us / max(estimate_us * launches, 1e-3))
    return Plan(launches, max(FEWEST_SAMPLES, min(SAMPLES, samples)))


class TimerError(Exception):
    """A time could not be taken; the message says why."""


class Timer(Protocol):
    """Takes times on a device."""

    def time(self, launch: Launch) -> Timing:
        """Launches follow one another without a gap; data rotates, and what fits stays in the L2 cache."""
        ...

    def time_cold(self, launch: Launch) -> Timing:
        """The same with the L2 cache overwritten before every launch, less the time of overwriting it."""
        ...

    def lost(self) -> bool:
        """Whether the device takes no more work, as after an illegal access."""
        ...
