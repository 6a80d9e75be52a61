"""The profile lists every kernel of a network, in order, with what the compile report says of its layer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import tvm_sparse
from tests.network.onnx_models import conv, model, tensor, weights
from tvm_sparse.cuda.limits import Limits
from tvm_sparse.deploy import Network, load, profile, profiling
from tvm_sparse.prune import magnitude_mask


def pruned(*shape: int, seed: int) -> np.ndarray:
    weight = weights(*shape, seed=seed)
    return np.where(magnitude_mask(weight, 0.8), weight, np.float32(0))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    import onnx.helper

    nodes = [
        conv("stem", "x", "w", "a", pads=[1] * 4),
        onnx.helper.make_node("MaxPool", ["a"], ["b"], kernel_shape=[2, 2], strides=[2, 2]),
        conv("late", "b", "v", "y"),
    ]
    constants = {"w": pruned(8, 4, 3, 3, seed=1), "v": pruned(8, 8, 1, 1, seed=2)}
    graph = model(nodes, constants, [tensor("x", (1, 4, 12, 12))])
    path: Path = tmp_path_factory.mktemp("profile") / "net.so"
    tvm_sparse.compile(graph, sparse="always", log=None).export(path)
    return load(path, threads=1)


def test_every_kernel_is_there_once_and_in_order(network: Network) -> None:
    result = profile(network)
    assert [kernel.name for kernel in result.kernels] == ["stem", "max pool2d", "late"]
    stem, pool, late = result.kernels
    assert (stem.template, stem.decision, late.template, pool.template, pool.decision) == (
        "cpu_vector",
        "sparse",
        "cpu_vector",
        "",
        "",
    )
    report = {layer["name"]: layer for layer in network.report()}
    assert (stem.reason, stem.flop) == (report["stem"]["reason"], report["stem"]["flop"])
    nnz = 8 * 4 * 9 - round(0.8 * 8 * 4 * 9)
    assert stem.flop == pytest.approx(2 * nnz * 144, rel=0.02) and pool.flop is None
    assert pool.bytes == 4 * 8 * (144 + 36) and stem.bytes > 4 * (4 * 144 + 8 * 144)
    assert all(kernel.time_us > 0 and kernel.bound_share is None for kernel in result.kernels)
    assert result.sum_us == pytest.approx(sum(kernel.time_us for kernel in result.kernels))
    assert sum(kernel.share for kernel in result.kernels) == pytest.approx(1)
    assert (result.model, result.device, result.threads) == (network.metadata.model, "cpu", 1)


def test_on_a_cpu_kernels_are_timed_in_whole_runs(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that ticks a microsecond between two looks at it, and much more in the first runs."""
    looks = []

    def clock() -> int:
        looks.append(None)
        run = (len(looks) - 1) // 6  # of three kernels, each with two looks
        return len(looks) * (1_000_000 if run < profiling._WARM_UPS else 1_000)

    arguments = network.to_device(list(network.random_inputs(0).values()))
    monkeypatch.setattr(profiling.time, "perf_counter_ns", clock)
    seen = profiling._in_place(network, arguments)
    assert [time_us for _, _, time_us in seen] == [1.0] * 3 and len({name for name, _, _ in seen}) == 3
    assert len(looks) == 6 * (profiling._WARM_UPS + profiling._RUNS)


def test_the_network_still_runs_as_before(network: Network) -> None:
    x = network.random_inputs(3)
    before = network.run(x)
    profile(network)
    after = network.run(x)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_json_holds_everything(network: Network) -> None:
    values = json.loads(profile(network).to_json())
    assert [kernel["function"] for kernel in values["kernels"]][1] == "max_pool2d"
    assert values["environment"]["packages"]["apache-tvm"] == "0.27.0.post1"


def test_layers_of_one_function_come_in_their_order() -> None:
    layers = [{"name": name, "function": "same", "flop": 10} for name in ("first", "second")]
    seen = [("same", 100, 2.0), ("fused_add1_relu", 200, 4.0), ("same", 100, 2.0)]
    described = profiling._described(seen, 8.0, layers, Limits(bytes_per_s=1e8, flop_per_s=1e6))
    assert [kernel.name for kernel in described] == ["first", "add relu", "second"]
    assert [kernel.share for kernel in described] == [0.25, 0.5, 0.25]
    assert [kernel.bound_share for kernel in described] == pytest.approx([5.0, 0.5, 5.0])


@pytest.mark.parametrize(("operators", "names"), [(2, ["a", "b"]), (3, ["conv2d add", "conv2d"])])
def test_convolutions_without_a_template_have_their_names_if_none_is_missing(operators: int, names: list[str]) -> None:
    layers = [{"name": name, "function": ""} for name in "abc"[:operators]] + [{"name": "own", "function": "direct"}]
    seen = [("fused_conv2d_add", 1, 1.0), ("direct", 1, 1.0), ("conv2d1", 1, 1.0), ("relu", 1, 1.0)]
    described = [kernel.name for kernel in profiling._described(seen, 4.0, layers, None)]
    assert described == [names[0], "own", names[1], "relu"]


@pytest.mark.parametrize(
    ("function", "text"),
    [
        ("fused_conv2d_add1_relu3", "conv2d add relu"),
        ("max_pool2d12", "max pool2d"),
        ("fused_tir_sigmoid_multiply", "sigmoid multiply"),
        ("copy_input", "copy input"),
    ],
)
def test_readable_names(function: str, text: str) -> None:
    assert profiling.readable(function) == text


def test_a_gpu_times_whole_graphs_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Timer:
        def __init__(self, index: int) -> None:
            asked.append(index)

        def warm(self, call: object) -> None:
            asked.append("warm")

        def calls_us(self, call: object, *, calls: int, repeats: int) -> list[float]:
            asked.append((calls, repeats))
            return [20.0] if repeats == 1 else [7.0, 5.0, 100.0]

    monkeypatch.setattr(profiling, "GraphTimer", Timer)
    assert profiling._gpu_timer(3)(lambda: None) == 7.0
    assert asked == [3, "warm", (4, 1), (15, profiling._REPEATS)]
