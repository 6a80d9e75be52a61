"""The graph timer calls CUDA's runtime in the right order with whole handles; a stand-in library plays the runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.stand_in_cudart import STREAM, install, journal
from tvm_sparse.cuda import runtime as cuda_runtime
from tvm_sparse.cuda.graph_timer import WARM_UPS, GraphTimer


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return install(tmp_path, monkeypatch)


def call_on(runtime: Any, numbers: list[int]) -> Any:
    """A call that notes the stream that TVM would launch on."""
    from tvm_ffi import core

    def call(number: int = 0) -> None:
        numbers.append(number)
        previous = core._env_set_current_stream(2, 1, 0)
        core._env_set_current_stream(2, 1, previous)
        runtime.note_call(getattr(previous, "value", previous) or 0)

    return call


def test_times_of_captured_calls(runtime: Any) -> None:
    timer = GraphTimer(1)
    call = call_on(runtime, numbers := [])
    timer.warm(call)
    assert timer.calls_us(call, calls=3, repeats=2) == [2000.0, 2000.0]
    assert numbers == [0, 0, 1, 2]
    stream = f"{STREAM:x}"
    launch = f"launch:7c0000000001,{stream}"
    assert journal(runtime) == [
        "device:1",
        f"call:{stream}",
        f"sync:{stream}",
        f"begin:{stream},2",
        *[f"call:{stream}"] * 3,
        f"end:{stream}",
        "instantiate:7d0000000001,0",
        "free:7d0000000001",
        *[launch] * (WARM_UPS + 2),
        "free:7c0000000001",
    ]


def test_a_call_that_cannot_be_captured_is_an_error(runtime: Any) -> None:
    timer = GraphTimer(0)
    runtime.fail_capture()
    with pytest.raises(RuntimeError, match="cudaStreamEndCapture: not permitted when stream is capturing"):
        timer.calls_us(lambda number: None, calls=1, repeats=1)


def test_no_runtime_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_runtime, "load_cudart", lambda: None)
    with pytest.raises(RuntimeError, match="no CUDA runtime"):
        GraphTimer(0)
