"""Calls on tensors that stay the same. The CPU stands in for the GPU, but where a test is marked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm_ffi

from tests.deploy.graph_builtins import SHAPE, expected, export_captured, graph_builtins
from tests.test_tvm_support import needs_cuda
from tvm_sparse.deploy import BoundCall, Network, bench, load, read_metadata
from tvm_sparse.deploy.native import load_runtime, start_machine
from tvm_sparse.deploy.plain_launches import PlainLaunches
from tvm_sparse.errors import InputError, LibraryError


class CallsOnTheCpu:
    """In the place of `CudaCalls`: a graph is a call that launches kernel after kernel."""

    def __init__(self, plain: PlainLaunches) -> None:
        self._plain = plain
        self.freed = 0
        self.refused = False

    def __call__(self, function: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        function(*inputs, *outputs)

    def graph(self, function: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> Callable[[], Any]:
        if self.refused:
            raise RuntimeError("cudaStreamEndCapture: not permitted")
        return lambda: function(*inputs, *outputs)

    def launch(self, graph: Callable[[], Any]) -> None:
        with self._plain():
            graph()

    def free(self, graph: Callable[[], Any]) -> None:
        self.freed += 1

    def own_stream(self) -> AbstractContextManager[None]:
        return nullcontext()

    def synchronize(self) -> None:
        pass

    finish = synchronize


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("captured") / "net.so"
    export_captured(path)
    load_runtime(path, cuda=False)
    return path


@pytest.fixture
def launched() -> Iterator[list[int]]:
    with graph_builtins() as numbers:
        yield numbers


@pytest.fixture
def network(library: Path, launched: list[int]) -> Network:
    plain = PlainLaunches(tvm_ffi)
    with plain.installed():
        machine = start_machine(tvm_ffi, library, "cpu", 0)
    return Network(library, read_metadata(library), tvm_ffi, machine, ("cpu", 0), None, CallsOnTheCpu(plain))


def values(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(SHAPE, "float32")


def test_it_reads_and_writes_the_tensors_bound(network: Network, launched: list[int]) -> None:
    (tensor,) = network.to_device([values(0)])
    bound = network.bind(tensor)
    assert bound.network is network and bound.inputs == (tensor,)
    view = np.from_dlpack(tensor)
    for seed in range(3):
        view[...] = values(seed)
        assert bound() is bound.outputs[0]
        np.testing.assert_allclose(np.from_dlpack(bound.outputs[0]), expected(values(seed)), rtol=1e-5)
    assert launched == []  # no graph of TVM's
    np.testing.assert_allclose(network.run({"x": values(7)})["y"], expected(values(7)), rtol=1e-5)
    assert launched == [0]


def test_by_name_with_torch(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    calls = network._torch_calls()
    monkeypatch.setattr(calls, "_place", torch.device("cpu"))
    monkeypatch.setattr(calls, "_current", lambda index: 0)
    x = torch.from_numpy(values(0)).clone()
    bound = network.bind(x=x)
    for seed in range(2):
        x.copy_(torch.from_numpy(values(seed)))
        y = bound()
        assert isinstance(y, torch.Tensor)
        np.testing.assert_allclose(y.numpy(), expected(values(seed)), rtol=1e-5)


def test_bench_times_it(network: Network, launched: list[int]) -> None:
    result = bench(network, bound=True, warmup=1, repeats=3)
    assert result.bound and result.count == 3 and launched == []
    assert not bench(network, warmup=0, repeats=2).bound and launched == [0, 0]


def test_two_bindings_do_not_share_outputs(network: Network) -> None:
    one, two = (network.bind(*network.to_device([values(seed)])) for seed in range(2))
    first, second = one(), two()
    np.testing.assert_allclose(np.from_dlpack(first), expected(values(0)), rtol=1e-5)
    np.testing.assert_allclose(np.from_dlpack(second), expected(values(1)), rtol=1e-5)


def test_a_graph_goes_with_its_binding(network: Network) -> None:
    bound: BoundCall | None = network.bind(*network.to_device([values(0)]))
    calls: Any = network._gpu
    assert bound is not None and calls.freed == 0
    bound = None
    assert calls.freed == 1


@pytest.mark.parametrize(
    "value", [values(0), np.asfortranarray(values(0)), "transposed", "unaligned"], ids=["numpy", "fortran", "t", "u"]
)
def test_what_would_be_copied_is_refused(network: Network, value: Any) -> None:
    if isinstance(value, str):
        torch = pytest.importorskip("torch")
        value = torch.zeros(SHAPE[::-1]).T if value == "transposed" else torch.zeros(64)[1:16].reshape(SHAPE)
    with pytest.raises(InputError, match=r"input 'x' cannot be bound, a call would copy it: it must lie on cpu, "):
        network.bind(value)


def test_inputs_are_checked_as_those_of_a_call(network: Network) -> None:
    with pytest.raises(InputError, match=r"input 'x' has shape \(5, 3\), expected \(3, 5\)"):
        network.bind(tvm_ffi.from_dlpack(np.zeros((5, 3), "float32")))
    with pytest.raises(InputError, match="input 'x' is missing"):
        network.bind()


def test_what_cannot_be_captured_says_so(network: Network) -> None:
    calls: Any = network._gpu
    calls.refused = True
    with pytest.raises(LibraryError, match=r"net\.so: its kernels cannot be captured: .*not permitted: call it"):
        network.bind(*network.to_device([values(0)]))


def test_a_network_on_the_cpu_has_nothing_to_bind(tmp_path: Path, compiled: Any) -> None:
    from tvm_sparse.deploy import export_library

    export_library(compiled.executable, compiled.metadata, tmp_path / "cpu.so")
    network = load(tmp_path / "cpu.so")
    with pytest.raises(InputError, match=r"cpu\.so runs on the CPU"):
        network.bind(*network.to_device(list(network.random_inputs().values())))


@pytest.fixture(scope="module", params=[["sm_80", "sm_90"], "sm_90"], ids=["apart", "overlapping"])
def on_gpu(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some layers, so that most kernels lie in TVM's graph; compiled for sm_90 alone they overlap."""
    import tvm_sparse
    from tests.network.layer_cases import layer_cases

    path = tmp_path_factory.mktemp("gpu") / "net.so"
    case = next(case for case in layer_cases() if case.name == "classifier")
    tvm_sparse.compile(case.model, target="cuda", arch=request.param).export(path)
    return path


@pytest.mark.gpu
@needs_cuda
def test_on_the_gpu(on_gpu: Path) -> None:
    torch = pytest.importorskip("torch")
    network = load(on_gpu)
    given = [torch.from_numpy(array).cuda() for array in network.random_inputs(0).values()]
    bound = network.bind(*given)
    for seed in range(3):
        arrays = network.random_inputs(seed)
        for tensor, array in zip(given, arrays.values(), strict=True):
            tensor.copy_(torch.from_numpy(array))
        bound.outputs[0].fill_(float("nan"))
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
            bound()
        torch.cuda.synchronize()
        (expected,) = network.run(arrays).values()
        np.testing.assert_array_equal(bound.outputs[0].cpu().numpy(), expected)


@pytest.mark.gpu
@needs_cuda
def test_a_call_lies_in_the_callers_graph(on_gpu: Path) -> None:
    torch = pytest.importorskip("torch")
    network = load(on_gpu)
    (x,) = [torch.from_numpy(array).cuda() for array in network.random_inputs(0).values()]
    network(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        doubled = 2 * network(x)
        network(doubled.new_zeros(x.shape))  # behind it, in the same memory
    for seed in range(3):
        (array,) = network.random_inputs(seed).values()
        x.copy_(torch.from_numpy(array))
        graph.replay()
        torch.cuda.synchronize()
        (expected,) = network.run(network.random_inputs(seed)).values()
        np.testing.assert_array_equal(doubled.cpu().numpy(), 2 * expected)
