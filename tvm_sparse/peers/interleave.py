"""Fair timing of several callables on one machine: interleaved, medians of paired ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Call = Callable[[], object]
#: Takes one sample: microseconds per call.
Sampler = Callable[[], float]

#: Thread pools spin for tens of milliseconds after a run. Each candidate starts once they have gone to sleep, and warm.
CPU_PAUSE_S, CPU_WARM_UPS, CPU_CALLS = 0.2, 2, 3
#: A sample on a GPU: calls for so long, at least and at most so many.
GPU_SAMPLE_US, GPU_WARM_UPS, GPU_FEWEST_CALLS, GPU_MOST_CALLS = 12_000.0, 2, 2, 100
#: Single calls behind a latency or a host time.
SINGLE_CALLS = 30


@dataclass(frozen=True)
class Timing:
    """Microseconds per call, one figure a round."""

    rounds_us: tuple[float, ...]

    @property
    def median_us(self) -> float:
        return statistics.median(self.rounds_us)

    @property
    def min_us(self) -> float:
        return min(self.rounds_us)

    def quantile_us(self, share: float) -> float:
        """The figure below which this share of the rounds lies, the nearest one of theirs."""
        ordered = sorted(self.rounds_us)
        return ordered[round(share * (len(ordered) - 1))]


def interleave(samplers: Mapping[str, Sampler], rounds: int) -> dict[str, Timing]:
    """Sample every candidate once in every round, in turn, so that a slow phase of the machine hits all of them."""
    figures: dict[str, list[float]] = {name: [] for name in samplers}
    for _ in range(rounds):
        for name, sample in samplers.items():
            figures[name].append(sample())
    return {name: Timing(tuple(values)) for name, values in figures.items()}


def paired_ratio(slow: Timing, fast: Timing) -> float:
    """How many times faster `fast` is: the median over the rounds of the ratio within a round."""
    return statistics.median(s / f for s, f in zip(slow.rounds_us, fast.rounds_us, strict=True))


def cpu_sampler(call: Call) -> Sampler:
    """Samples are the median of a few calls that have done their work when they return."""

    def sample() -> float:
        time.sleep(CPU_PAUSE_S)
        for _ in range(CPU_WARM_UPS):
            call()
        return statistics.median(_timed_us(call) for _ in range(CPU_CALLS))

    return sample


def gpu_sampler(call: Call) -> Sampler:
    """Samples are the mean of calls one behind the other on torch's current stream, between two events.

    Calls go before the first event, so that the device is busy and its clock up while the host enqueues.
    """
    import torch

    def between_events(calls: int) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(GPU_WARM_UPS):
            call()
        begin.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e3 / calls

    call()
    torch.cuda.synchronize()
    calls = round(GPU_SAMPLE_US / max(between_events(GPU_FEWEST_CALLS), 1e-3))
    calls = max(GPU_FEWEST_CALLS, min(GPU_MOST_CALLS, calls))
    return lambda: between_events(calls)


def single_calls_us(call: Call, synchronize: Callable[[], Any]) -> tuple[float, float]:
    """Median microseconds of one call on an idle device: until the results are there, and until the host is free."""
    whole, host = [], []
    for _ in range(SINGLE_CALLS):
        synchronize()
        begin = time.perf_counter_ns()
        call()
        returned = time.perf_counter_ns()
        synchronize()
        whole.append((time.perf_counter_ns() - begin) / 1e3)
        host.append((returned - begin) / 1e3)
    return statistics.median(whole), statistics.median(host)


def _timed_us(call: Call) -> float:
    begin = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - begin) / 1e3
