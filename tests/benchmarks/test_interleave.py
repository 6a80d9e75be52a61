"""The timing that every claim of speed rests on."""

from __future__ import annotations

import time

from benchmarks.interleave import Timing, interleave, paired_ratio


def test_the_ratio_is_of_pairs_not_of_medians():
    slow, fast = Timing((10.0, 100.0, 12.0)), Timing((5.0, 50.0, 4.0))
    assert paired_ratio(slow, fast) == 2.0
    assert slow.median_ms / fast.median_ms != 2.0


def test_candidates_take_turns(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    calls = []
    timings = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    turns = [name for index, name in enumerate(calls) if index == 0 or calls[index - 1] != name]
    assert turns == ["a", "b", "a", "b"]
    assert len(timings["a"].rounds_ms) == 2


def test_a_slower_callable_takes_longer():
    timings = interleave({"slow": lambda: time.sleep(0.02), "fast": lambda: None}, rounds=3)
    assert timings["slow"].min_ms > 18
    assert paired_ratio(timings["slow"], timings["fast"]) > 10
