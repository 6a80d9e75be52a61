"""bench: the counts it was asked for, the statistics of what it measured."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tvm_sparse.deploy import bench, load, timing
from tvm_sparse.errors import InputError


@pytest.fixture(scope="module")
def network(library):
    return load(library)


def test_the_statistics_are_those_of_the_calls(network, monkeypatch):
    durations_us = [*range(1, 20), 1000]
    ticks = iter(np.cumsum([step for us in durations_us for step in (7000, us * 1000)]).tolist())
    monkeypatch.setattr(timing.time, "perf_counter_ns", lambda: next(ticks))
    result = bench(network, warmup=0, repeats=20)
    assert (result.min_us, result.median_us, result.p95_us, result.mean_us) == (1, 10.5, 19, 59.5)
    assert (result.count, result.model, result.device) == (20, "two outputs", "cpu")


@pytest.mark.parametrize(("warmup", "repeats"), [(0, 1), (3, 5)])
def test_calls_are_counted(network, monkeypatch, warmup, repeats):
    calls = []
    invoke = network.invoke
    monkeypatch.setattr(network, "invoke", lambda *tensors: calls.append(1) or invoke(*tensors))
    result = bench(network, warmup=warmup, repeats=repeats)
    assert result.count == repeats and len(calls) == warmup + repeats
    assert 0 < result.min_us <= result.median_us <= result.p95_us and result.threads == network.threads


def test_it_goes_on_for_the_least_time(network):
    result = bench(network, warmup=0, repeats=1, min_time_s=0.05)
    assert result.count > 1 and result.mean_us * result.count < 1e6


def test_json_holds_everything(network):
    values = json.loads(bench(network, repeats=2, inputs=network.random_inputs(4)).to_json())
    assert values["count"] == 2 and values["environment"]["packages"]["apache-tvm"] == "0.27.0.post1"


@pytest.mark.parametrize("arguments", [{"repeats": 0}, {"warmup": -1}, {"inputs": {"nothing": 1}}, {"bound": True}])
def test_wrong_arguments_are_refused(network, arguments):
    with pytest.raises(InputError):
        bench(network, **arguments)
