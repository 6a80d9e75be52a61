"""Work on several streams is put in order, and a refusal of CUDA is an error with its text."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest

from tests.stand_in_cudart import install, journal
from tvm_sparse.cuda.limits import Limits
from tvm_sparse.cuda.runtime import CudaRuntime, StreamOrder

EVENT = "7b0000000001"


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return install(tmp_path, monkeypatch)


def test_only_another_stream_waits(library: Any) -> None:
    order = StreamOrder(CudaRuntime())
    for stream in (0, 0, 0x7F00000000AA, 0x7F00000000AA, 0):
        order.begin(stream)
        order.end(stream)
    assert journal(library) == [
        "event:2",  # without times
        "record:0",
        "record:0",
        f"wait:7f00000000aa,{EVENT}",
        "record:7f00000000aa",
        "record:7f00000000aa",
        f"wait:0,{EVENT}",
        "record:0",
    ]


def test_a_refusal_is_an_error(library: Any) -> None:
    library.fail_capture()
    with pytest.raises(RuntimeError, match="cudaStreamEndCapture: not permitted when stream is capturing"):
        CudaRuntime()("cudaStreamEndCapture", ctypes.c_void_p(1), ctypes.byref(ctypes.c_void_p()))


def test_limits_are_those_the_gpu_names(library: Any) -> None:
    """The stand-in answers with each attribute's number."""
    limits = Limits.of_gpu(0)
    assert limits == Limits(bytes_per_s=2 * 36e3 * 37 / 8, flop_per_s=2 * 16 * 128 * 13e3)
    assert limits.bound_us(moved_bytes=333, flop=0) == pytest.approx(1000)
    assert limits.bound_us(moved_bytes=333, flop=10**8) > 1000
    library.refuse(13)
    assert Limits.of_gpu(0) is None
