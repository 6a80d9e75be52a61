"""The steps of the CUDA timer, with a device that only counts: what it would do on a GPU, in which order."""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.gpu_layers.timing import COPIES, LAUNCHES, SAMPLES, TimerError

torch = pytest.importorskip("torch")
tvm_ffi = pytest.importorskip("tvm_ffi")
CYCLES_PER_US = 1980.0
FLUSH_US = 40.0


class Device:
    """A clock in microseconds that launches, spins and flushes advance; `captured` is the graph being recorded."""

    def __init__(self) -> None:
        self.us = 0.0
        self.captured: list[float] | None = None
        self.streams: list[str] = ["default"]
        self.graph: list[float] | None = None
        self.graphs: list[Any] = []
        self.destroyed = 0
        self.refuses_capture = False

    def work(self, us: float) -> None:
        if self.captured is None:
            self.us += us
        elif self.refuses_capture:
            raise RuntimeError("operation not permitted when stream is capturing")
        else:
            self.captured.append(us)


@pytest.fixture
def device(monkeypatch):
    found = Device()

    class Runtime:
        """The functions of CUDA's runtime that the timer calls; handles are plain objects."""

        def __call__(self, function: str, *arguments: Any) -> None:
            getattr(self, function)(*arguments)

        def made(self, function: str, *arguments: Any) -> Any:
            if function == "cudaGraphInstantiate":
                found.graphs.append(found.graph)
                return ctypes.c_void_p(len(found.graphs))
            return SimpleNamespace(value=7, us=None)

        def cudaSetDevice(self, index: int) -> None:
            assert index == 3

        def cudaStreamBeginCapture(self, stream: Any, mode: int) -> None:
            found.captured = []

        def cudaStreamEndCapture(self, stream: Any, graph: Any) -> None:
            found.graph, found.captured = found.captured, None

        def cudaGraphLaunch(self, runnable: Any, stream: Any) -> None:
            assert found.captured is None
            found.us += sum(found.graphs[runnable.value - 1])

        def cudaGraphExecDestroy(self, runnable: Any) -> None:
            found.destroyed += 1

        def cudaGraphDestroy(self, graph: Any) -> None:
            pass

        def cudaEventRecord(self, event: Any, stream: Any) -> None:
            assert found.captured is None and stream.value == 7
            event.us = found.us

        def cudaEventSynchronize(self, event: Any) -> None:
            pass

        def cudaEventElapsedTime(self, elapsed_ms: Any, begin: Any, end: Any) -> None:
            elapsed_ms._obj.value = (end.us - begin.us) / 1e3

    @contextmanager
    def on_stream(stream):
        assert stream == "stream 7"
        found.streams.append("timer")
        yield
        found.streams.pop()

    @contextmanager
    def tvm_stream(device, stream):
        assert stream == 7
        found.streams[-1] += "+tvm"
        yield
        found.streams[-1] = found.streams[-1].removesuffix("+tvm")

    class Buffer:
        def zero_(self) -> None:
            found.work(FLUSH_US)

        def __matmul__(self, other: Any) -> Any:
            return self

    fakes: dict[str, Any] = {
        "stream": on_stream,
        "ExternalStream": lambda handle: f"stream {handle}",
        "current_device": lambda: 3,
        "synchronize": lambda: None,
        "_sleep": lambda cycles: found.work(cycles / CYCLES_PER_US),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    for name in ("empty", "ones"):
        monkeypatch.setattr(torch, name, lambda *shape, **options: Buffer())
    monkeypatch.setattr(tvm_ffi, "use_raw_stream", tvm_stream)
    monkeypatch.setattr("tvm_sparse.cuda.graph_timer.CudaRuntime", Runtime)
    monkeypatch.setattr("benchmarks.gpu_layers.graph_timer.WARM_UP_S", 0.001)
    yield found
    assert found.destroyed == len(found.graphs)


@pytest.fixture
def timer(device):
    from benchmarks.gpu_layers.graph_timer import GraphTimer

    return GraphTimer()


def kernel(device, us=5.0):
    def launch(i: int) -> None:
        assert device.streams[-1] == "timer+tvm", "TVM and torch launch on the same stream"
        launch.numbers.append(i)
        device.work(us)

    launch.numbers = []
    return launch


def test_a_graph_is_timed_without_what_surrounds_it(device, timer):
    launch = kernel(device)
    timing = timer.time(launch)
    assert timing.median_us == timing.p90_us == pytest.approx(5.0)
    assert (timing.launches, timing.samples, timing.method) == (LAUNCHES, SAMPLES, "graph")
    assert timing.clock_mhz == pytest.approx(CYCLES_PER_US, abs=1)
    warm, captured = launch.numbers[:-LAUNCHES], launch.numbers[-LAUNCHES:]
    assert sorted(set(warm)) == list(range(COPIES)), "every copy ran before it is captured"
    assert {i % COPIES for i in captured} == set(range(COPIES))
    assert device.streams == ["default"]


def test_flushing_is_subtracted(device, timer):
    assert timer.time_cold(kernel(device, 7.5)).median_us == pytest.approx(7.5)


def test_what_cannot_be_captured_is_timed_in_a_loop(device, timer):
    device.refuses_capture = True
    timing = timer.time(kernel(device, 3.0))
    assert (timing.method, timing.median_us) == ("events", pytest.approx(3.0))
    with pytest.raises(TimerError, match="not permitted"):
        timer.time_cold(kernel(device))


def test_long_kernels_get_fewer_launches(device, timer):
    timing = timer.time(kernel(device, 20_000.0))
    assert timing.launches == 12 and timing.samples == 5


def test_a_failing_kernel_is_an_error_and_a_dead_device_is_noticed(device, timer, monkeypatch):
    def launch(i: int) -> None:
        raise RuntimeError("CUDA error: an illegal memory access\nmore")

    with pytest.raises(TimerError, match=r"an illegal memory access$"):
        timer.time(launch)
    assert not timer.lost()

    def dead() -> None:
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(torch.cuda, "synchronize", dead)
    assert timer.lost()
