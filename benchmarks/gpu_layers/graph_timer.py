"""Times on an NVIDIA GPU: a CUDA graph of launches by TVM or torch, replayed between events.

The host only ever enqueues ahead of the device: a spin comes first, so that no sample waits for it; how long the spin
takes tells the clock. Everything is warmed up before it is captured, since a capture should allocate no memory: modules
are loaded and the pools of TVM and torch have their blocks by then. A graph is replayed before any other kernel runs,
so that the pools cannot hand these on meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.gpu_layers.timing import COPIES, Launch, Plan, TimerError, Timing, plan
from tvm_sparse.cuda import graph_timer

#: More than twice the L2 cache of an H200.
FLUSH_BYTES = 128 * 2**20
#: Cycles of the spin: 3 ms for the clock to rise, and 30 us for the host to enqueue each sample.
SPIN_CYCLES, SPIN_CYCLES_PER_SAMPLE = 6_000_000, 60_000
FLUSH_US = 50.0
WARM_UP_S = 0.5


class GraphTimer:
    """See timing.Timer. Cold times are the median difference of neighbouring samples with and without the kernel."""

    def __init__(self) -> None:
        import torch

        self._torch: Any = torch
        self._timer = graph_timer.GraphTimer(torch.cuda.current_device())
        self._stream = torch.cuda.ExternalStream(self._timer.stream)
        self._flushed = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
        self._clock_mhz = 0.0
        square, begin = torch.ones(4096, 4096, device="cuda"), time.monotonic()
        while time.monotonic() - begin < WARM_UP_S:
            square @ square
            torch.cuda.synchronize()

    def time(self, launch: Launch) -> Timing:
        with self._on_stream(), _as_timer_error():
            planned = plan(self._estimate_us(launch))
            try:
                with self._captured(launch, planned.launches) as replay:
                    samples = self._between_events([replay] * planned.samples)
            except RuntimeError:
                self._torch.cuda.synchronize()
                return self._loop(launch, planned)
            return Timing.of(samples, planned.launches, "graph", self._clock_mhz)

    def time_cold(self, launch: Launch) -> Timing:
        def flush_then_launch(i: int) -> None:
            self._flush(i)
            launch(i)

        with self._on_stream(), _as_timer_error():
            planned = plan(2 * (self._estimate_us(launch) + FLUSH_US))
            with (
                self._captured(flush_then_launch, planned.launches) as both,
                self._captured(self._flush, planned.launches) as alone,
            ):
                times = self._between_events([both, alone] * planned.samples)
            differences = [a - b for a, b in zip(times[::2], times[1::2], strict=True)]
            return Timing.of(differences, planned.launches, "graph", self._clock_mhz)

    def lost(self) -> bool:
        try:
            self._torch.cuda.synchronize()
        except RuntimeError:
            return True
        return False

    def _flush(self, i: int) -> None:
        self._flushed.zero_()

    def _estimate_us(self, launch: Launch) -> float:
        """Of one launch, which may include the host's time; every copy has run twice afterwards."""
        for i in range(COPIES):
            launch(i)
        return self._between_events([lambda: [launch(i) for i in range(COPIES)]])[0] / COPIES

    @contextmanager
    def _captured(self, launch: Launch, launches: int) -> Iterator[Callable[[], None]]:
        self._torch.cuda.synchronize()
        with self._timer.captured(launch, launches) as replay:
            for _ in range(2):
                replay()
            yield replay

    def _loop(self, launch: Launch, planned: Plan) -> Timing:
        def once() -> None:
            for i in range(planned.launches):
                launch(i)

        # One at a time, each behind its own head start: a long queue of launches would block the host.
        times = [self._between_events([once])[0] for _ in range(planned.samples)]
        return Timing.of(times, planned.launches, "events", self._clock_mhz)

    def _between_events(self, calls: list[Callable[[], object]]) -> list[float]:
        """Microseconds that each of the calls takes on the device, one behind the other."""
        cycles = SPIN_CYCLES + SPIN_CYCLES_PER_SAMPLE * len(calls)
        self._torch.cuda.synchronize()
        spin_us, *times = self._timer.between_events([lambda: self._torch.cuda._sleep(cycles), *calls])
        self._clock_mhz = cycles / spin_us
        return times

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        """torch and TVM launch on the timer's stream."""
        self._torch.cuda.synchronize()
        with self._torch.cuda.stream(self._stream), self._timer.current():
            yield


@contextmanager
def _as_timer_error() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of torch, out of memory among them, of TVM and of CUDA's runtime
        raise TimerError(f"{type(error).__name__}: {str(error).splitlines()[0][:200]}") from error
