"""The timing that every claim of speed rests on."""

from __future__ import annotations

import time

import pytest

from tvm_sparse.peers import interleave as home
from tvm_sparse.peers.interleave import Timing, cpu_sampler, interleave, paired_ratio, single_calls_us


def test_the_ratio_is_of_pairs_not_of_medians():
    slow, fast = Timing((10.0, 100.0, 12.0)), Timing((5.0, 50.0, 4.0))
    assert paired_ratio(slow, fast) == 2.0
    assert slow.median_us / fast.median_us != 2.0


def test_the_spread_is_of_the_rounds():
    timing = Timing(tuple(float(us) for us in range(20, 9, -1)))
    assert (timing.min_us, timing.quantile_us(0.1), timing.median_us, timing.quantile_us(0.9)) == (10, 11, 15, 19)
    assert Timing((3.0,)).quantile_us(0.9) == 3


def test_candidates_take_turns(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    calls = []
    samplers = {name: cpu_sampler(lambda name=name: calls.append(name)) for name in "ab"}
    timings = interleave(samplers, rounds=2)
    turns = [name for index, name in enumerate(calls) if index == 0 or calls[index - 1] != name]
    assert turns == ["a", "b", "a", "b"]
    assert len(timings["a"].rounds_us) == 2


def test_a_slower_callable_takes_longer():
    samplers = {"slow": cpu_sampler(lambda: time.sleep(0.02)), "fast": cpu_sampler(lambda: None)}
    timings = interleave(samplers, rounds=3)
    assert timings["slow"].min_us > 18_000
    assert paired_ratio(timings["slow"], timings["fast"]) > 10


@pytest.mark.parametrize("call_s", [0.0, 0.002])
def test_latency_counts_the_wait_and_host_time_does_not(call_s):
    latency, host = single_calls_us(lambda: time.sleep(call_s), lambda: time.sleep(0.004))
    assert latency > host + 3_500
    assert call_s * 1e6 <= host < call_s * 1e6 + 2_500


def test_samples_on_a_gpu_are_means_between_events(monkeypatch):
    torch = pytest.importorskip("torch")
    done, marks = [], []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            marks.append(len(done))
            self.at = len(done) * 2.0  # a call takes two milliseconds

        def synchronize(self):
            pass

        def elapsed_time(self, other):
            return other.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    sample = home.gpu_sampler(lambda: done.append(1))
    marks.clear()
    assert sample() == 2000.0
    assert marks[1] - marks[0] == home.GPU_SAMPLE_US / 2000
