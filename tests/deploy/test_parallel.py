"""Several instances of a library: split batches, streams in order, errors where they belong, nothing left behind."""

from __future__ import annotations

import gc
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

import tvm_sparse
from tests.network.onnx_models import conv, model, tensor, weights
from tests.test_tvm_support import needs_cuda, without_driver
from tvm_sparse.deploy import DataParallel, parallel, throughput
from tvm_sparse.deploy.machine import usable_cpus
from tvm_sparse.errors import InputError, LibraryError

Network = Callable[..., Any]


def shifted(batch: int | str) -> onnx.ModelProto:
    """x (batch, 4, 8, 8), shift (8, 1, 1) -> relu(conv(x) + shift)."""
    nodes = [
        conv("only", "x", "w", "a", pads=[1] * 4),
        helper.make_node("Add", ["a", "shift"], ["b"]),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    return model(nodes, {"w": weights(8, 4, 3, 3)}, [tensor("x", (batch, 4, 8, 8)), tensor("shift", (8, 1, 1))])


SHIFT = weights(8, 1, 1, seed=3)


def images(n: int, seed: int = 0) -> np.ndarray:
    return weights(n, 4, 8, 8, seed=seed)


@pytest.fixture(scope="module")
def batched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that serves 1 to 4 images."""
    path = tmp_path_factory.mktemp("parallel") / "batched.so"
    tvm_sparse.compile(shifted("n"), batch="1,3,4", threads=1, verify=False).export(path)
    return path


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library for two images, without another input."""
    path = tmp_path_factory.mktemp("parallel") / "fixed.so"
    net = model([conv("only", "x", "w", "y", pads=[1] * 4)], {"w": weights(8, 4, 3, 3)}, [tensor("x", (2, 4, 8, 8))])
    tvm_sparse.compile(net, threads=1, verify=False).export(path)
    return path


@pytest.fixture(scope="module")
def expected() -> Network:
    session = onnxruntime.InferenceSession(shifted("n").SerializeToString())
    return lambda x, shift=SHIFT: session.run(None, {"x": x, "shift": shift})[0]


@pytest.fixture(scope="module")
def networks(batched: Path) -> Iterator[DataParallel]:
    with tvm_sparse.serve(batched, devices=["cpu", "cpu"]) as networks:
        yield networks


def close(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9, 23])
def test_a_batch_of_any_size(networks: DataParallel, expected: Network, n: int) -> None:
    close(networks(images(n), SHIFT), expected(images(n)))
    close(networks(images(n), shift=SHIFT), expected(images(n)))


@pytest.mark.parametrize(
    ("n", "sizes"), [(1, [1]), (2, [1, 1]), (7, [3, 4]), (8, [4, 4]), (9, [2, 2, 2, 3]), (17, [2, 3, 3, 3, 3, 3])]
)
def test_a_batch_is_split_evenly_over_all(networks: DataParallel, n: int, sizes: list[int], monkeypatch: Any) -> None:
    seen = []
    real = tvm_sparse.deploy.Network.__call__

    def call(self: Any, *inputs: Any, **named: Any) -> Any:
        seen.append((len(inputs[0]), threading.current_thread().name))
        return real(self, *inputs, **named)

    monkeypatch.setattr(tvm_sparse.deploy.Network, "__call__", call)
    networks(images(n), SHIFT)
    assert sorted(size for size, _ in seen) == sizes
    assert {name for _, name in seen} == {"tvm-sparse cpu"}


def test_a_stream_keeps_its_order(networks: DataParallel, expected: Network) -> None:
    sizes = [4, 1, 3, 1, 1, 2, 4, 1, 3]
    forms: list[Callable[[np.ndarray], Any]] = [
        lambda x: (x, SHIFT),
        lambda x: [x, SHIFT],
        lambda x: {"shift": SHIFT, "x": x},
    ]
    requests = (forms[seed % 3](images(n, seed)) for seed, n in enumerate(sizes))
    results = list(networks.map(requests))
    for seed, (n, result) in enumerate(zip(sizes, results, strict=True)):
        close(result, expected(images(n, seed)))
    assert list(networks.map([])) == []


def test_a_single_array_is_a_request(fixed: Path) -> None:
    with tvm_sparse.serve(fixed, devices=["cpu", "cpu"]) as networks:
        alone = tvm_sparse.load(fixed, threads=1)
        for x, y in zip(map(images, (2, 2)), networks.map(map(images, (2, 2))), strict=True):
            assert np.array_equal(y, alone(x))


def test_requests_are_taken_as_they_are_needed(networks: DataParallel) -> None:
    taken = []

    def requests() -> Iterator[Any]:
        for seed in itertools.count():
            taken.append(seed)
            yield images(1, seed), SHIFT

    results = networks.map(requests())
    for count in range(1, 6):
        next(results)
        assert len(taken) <= count + parallel.REQUESTS_PER_THREAD * 2
    results.close()  # type: ignore[attr-defined]
    assert networks(images(1), SHIFT).shape == (1, 8, 8, 8)


def test_torch_tensors_go_through_a_stream(networks: DataParallel, expected: Network) -> None:
    torch = pytest.importorskip("torch")
    (result,) = networks.map([(torch.from_numpy(images(2)), torch.from_numpy(SHIFT))])
    assert isinstance(result, torch.Tensor)
    close(result.numpy(), expected(images(2)))
    with pytest.raises(InputError, match="input 'x': Tensor is no numpy array; use map for others"):
        networks(torch.from_numpy(images(2)), SHIFT)


def test_an_error_comes_at_its_place_and_work_goes_on(networks: DataParallel, expected: Network) -> None:
    results = networks.map([(images(1), SHIFT), (images(5), SHIFT), (images(1), SHIFT)])
    close(next(results), expected(images(1)))
    with pytest.raises(InputError, match="input 'x' has batch 5, the library serves 1 to 4"):
        next(results)

    def broken() -> Iterator[Any]:
        yield images(1), SHIFT
        raise OSError("the source of requests")

    with pytest.raises(OSError, match="the source of requests"):
        list(networks.map(broken()))
    with pytest.raises(ZeroDivisionError):
        networks.on_each(lambda network: 1 // 0)
    close(networks(images(6), SHIFT), expected(images(6)))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((images(3),), "input 'shift' is missing"),
        ((images(0), SHIFT), "input 'x' has no images"),
        ((np.ones((), np.float32), SHIFT), "input 'x' has no images"),
        ((images(3)[..., :7], SHIFT), r"input 'x' has shape \(1, 4, 8, 7\), expected \(1, 4, 8, 8\)"),
        ((images(3), SHIFT[:3]), r"input 'shift' has shape \(3, 1, 1\)"),
        (([1.0], SHIFT), "input 'x': list is no numpy array"),
    ],
)
def test_wrong_inputs(networks: DataParallel, inputs: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        networks(*inputs)


def test_a_library_for_one_batch_size(fixed: Path, library: Path) -> None:
    alone = tvm_sparse.load(fixed, threads=1)
    x = images(6)
    with tvm_sparse.serve(fixed, devices=["cpu", "cpu"]) as networks:
        assert np.array_equal(networks(x), np.concatenate([alone(x[i : i + 2]) for i in (0, 2, 4)]))
        with pytest.raises(InputError, match="input 'x' has batch 5, the library takes 2 at a time: give a multiple"):
            networks(images(5))
    with tvm_sparse.serve(library) as networks:  # input.1 (4, 8), bias (3,): no batch to be seen
        assert networks.devices == ("cpu",)
        inputs = networks.random_inputs()
        for ours, theirs in zip(networks(**inputs), tvm_sparse.load(library)(**inputs), strict=True):
            assert np.array_equal(ours, theirs)
        with pytest.raises(InputError, match="do not share a batch: use map"):
            networks(*(np.concatenate([array] * 2) for array in inputs.values()))


def test_calls_from_many_threads(networks: DataParallel, expected: Network) -> None:
    def call(seed: int) -> None:
        for n in (1, 5, 4, 9):
            close(networks(images(n, seed), SHIFT), expected(images(n, seed)))
            assert len(networks.on_each(lambda network: network.device)) == 2

    with ThreadPoolExecutor(4) as callers:
        list(callers.map(call, range(4)))


def test_they_run_at_the_same_time(networks: DataParallel) -> None:
    names = networks.on_each(lambda network: (threading.get_ident(), time.sleep(0.05)))
    assert len({ident for ident, _ in names}) == 2


@pytest.mark.skipif(len(usable_cpus()) < 2, reason="one CPU only")
def test_threads_are_shared_out(batched: Path) -> None:
    for threads, shares in [(2, [1, 1]), (None, [1] * 2 if len(usable_cpus()) == 2 else None)]:
        with tvm_sparse.serve(batched, devices=["cpu", "cpu"], threads=threads) as networks:
            found = networks.on_each(lambda network: network.threads)
        assert shares is None or found == shares
    assert parallel._shares(2, 2) == [1, 1]


@pytest.mark.parametrize(
    ("devices", "threads", "error", "message"),
    [
        ([], None, InputError, "no device to run on"),
        (["cuda:0"], None, InputError, "device 'cuda:0' does not fit: the library was compiled for cpu"),
        (["cpu", "gpu"], None, InputError, "device must be cpu, cuda or cuda:N"),
        (["cuda:1", "cuda:0", "cuda:1"], None, InputError, "device cuda:1 is named twice"),
        (["cuda", "cuda:0"], None, InputError, "device cuda:0 is named twice"),
        (["cpu", "cpu"], 1, InputError, "1 threads for 2 instances: give 2 to"),
        (["cpu"], 100_000, InputError, "100000 threads for 1 instances: give 1 to"),
    ],
)
def test_impossible_devices(
    batched: Path, devices: list[str], threads: int | None, error: type[Exception], message: str
) -> None:
    before = threading.active_count()
    with pytest.raises(error, match=message):
        tvm_sparse.serve(batched, devices=devices, threads=threads)
    assert threading.active_count() == before


def test_a_missing_library(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match=r"none\.so: cannot be read"):
        tvm_sparse.serve(tmp_path / "none.so")


@pytest.mark.parametrize(
    ("archs", "capabilities", "devices"),
    [
        (("sm_90",), [(9, 0), (9, 0)], ("cuda:0", "cuda:1")),
        (("sm_80",), [(8, 6), (9, 0), (8, 0)], ("cuda:0", "cuda:2")),
        (("sm_90",), [(8, 0)], ("cuda:0",)),
        (("sm_90",), None, ("cuda:0",)),
    ],
)
def test_all_gpus_that_fit_are_taken(monkeypatch: Any, archs: Any, capabilities: Any, devices: Any) -> None:
    metadata = tvm_sparse.deploy.Metadata("m", (), (), "cuda", archs=archs)
    monkeypatch.setattr(parallel, "device_capabilities", lambda: capabilities)
    assert parallel._chosen(None, metadata) == devices


def test_closing_ends_the_threads_and_lets_go_of_the_networks(batched: Path) -> None:
    before = threading.active_count()
    networks = tvm_sparse.serve(batched, devices=["cpu", "cpu"])
    gone = [weakref.ref(network) for network in networks.on_each(lambda network: network)]
    assert threading.active_count() == before + 2
    networks.close()
    networks.close()
    gc.collect()
    assert threading.active_count() == before and [network() for network in gone] == [None, None]
    with pytest.raises(InputError, match="these networks were closed"):
        networks(images(1), SHIFT)


@pytest.mark.parametrize("call", [lambda networks: networks.on_each(id), lambda networks: list(networks.map([1]))])
def test_what_is_closed_says_so(batched: Path, call: Network) -> None:
    with tvm_sparse.serve(batched) as networks:
        pass
    with pytest.raises(InputError, match="these networks were closed"):
        call(networks)


def test_a_thread_that_gets_no_stream_says_why(batched: Path, monkeypatch: Any) -> None:
    def own_stream(self: Any) -> Any:
        raise RuntimeError("cudaStreamCreateWithFlags: out of memory")

    monkeypatch.setattr(tvm_sparse.deploy.Network, "own_stream", own_stream)
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="out of memory"):
        tvm_sparse.serve(batched)
    assert threading.active_count() == before


def test_each_network_is_called_once_though_it_has_several_threads(batched: Path, monkeypatch: Any) -> None:
    class Gpu(tvm_sparse.deploy.Network):
        """A CPU's network that says it is a GPU's, and so gets more threads."""

        device = property(lambda self: f"cuda:{self.number}", lambda self, name: None)

    loaded: list[Gpu] = []

    def load(path: Path, *, device: str, threads: int | None) -> Gpu:
        network = tvm_sparse.load(path)
        network.__class__ = Gpu
        network.number = len(loaded)
        loaded.append(network)
        return network

    monkeypatch.setattr(parallel, "load", load)
    with tvm_sparse.serve(batched, devices=["cpu", "cpu"]) as networks:
        assert len(networks._threads) == 2 * parallel.THREADS_PER_GPU
        assert [networks.on_each(lambda network: network.device) for _ in range(20)] == [["cuda:0", "cuda:1"]] * 20
        assert len(list(networks.map([(images(2), SHIFT)] * 9))) == 9


def test_forgetting_to_close_leaves_no_thread(batched: Path) -> None:
    before = threading.active_count()
    tvm_sparse.serve(batched)
    gc.collect()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_throughput_is_measured_for_each_number_of_devices(batched: Path) -> None:
    found = throughput(batched, devices=["cpu"] * 2, batch=3, seconds=0.2)
    assert (found.batch, [rate.devices for rate in found.rates]) == (3, [("cpu",), ("cpu", "cpu")])
    one, two = found.rates
    assert (one.host_speed_up, one.device_speed_up) == (1.0, 1.0)
    assert two.host_speed_up == pytest.approx(two.host_per_s / one.host_per_s)
    assert min(one.host_per_s, one.device_per_s, two.host_per_s, two.device_per_s) > 0
    with pytest.raises(InputError, match="batch 9"):
        throughput(batched, batch=9, seconds=0.2)
    with pytest.raises(InputError, match="cannot be measured in 0 seconds"):
        throughput(batched, seconds=0)


@needs_cuda
@without_driver
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    tvm_sparse.compile(shifted(1), target="cuda", arch="sm_90").export(tmp_path / "gpu.so")
    with pytest.raises(LibraryError, match="no working driver is here"):
        tvm_sparse.serve(tmp_path / "gpu.so")


@pytest.mark.gpu
@needs_cuda
def test_all_gpus_give_the_same(tmp_path: Path, expected: Network) -> None:
    tvm_sparse.compile(shifted("n"), target="cuda", arch=["sm_80", "sm_90"], batch="1-8").export(tmp_path / "gpu.so")
    with tvm_sparse.serve(tmp_path / "gpu.so") as networks:
        for n in (1, 5, 16, 29):
            np.testing.assert_allclose(networks(images(n), SHIFT), expected(images(n)), rtol=1e-4, atol=1e-4)
        outputs = networks.on_each(lambda network: network(images(5), SHIFT))
    assert all(np.array_equal(output, outputs[0]) for output in outputs)
