"""Calls of a CUDA library, on a stand-in for CUDA's runtime: their device, their stream, their order."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import tvm_ffi

from tests.stand_in_cudart import install, journal
from tvm_sparse.deploy import TensorSpec, cuda_calls, tensors
from tvm_sparse.deploy.cuda_calls import CudaCalls
from tvm_sparse.deploy.plain_launches import PlainLaunches
from tvm_sparse.errors import InputError

SPEC = TensorSpec("x", (2, 3), "float32")
STREAM = 0x7F00000000AA
PLAIN = PlainLaunches(tvm_ffi)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(cuda_calls, "_pool_orders", {})
    monkeypatch.setattr(tensors, "zeros", lambda tvm_ffi, spec, kind, index: (spec.name, kind, index))
    return install(tmp_path, monkeypatch)


def test_a_call_gets_the_outputs_behind_the_inputs(library: Any) -> None:
    seen = []
    CudaCalls(tvm_ffi, 0, PLAIN)(lambda *tensors: seen.append(tensors), ["a", "b"], ["c"])
    assert seen == [("a", "b", "c")]
    assert journal(library) == ["event:2", "record:0"]


def test_calls_on_two_streams_are_in_order(library: Any) -> None:
    calls = CudaCalls(tvm_ffi, 0, PLAIN)
    for stream in (0, STREAM, 0):
        with tvm_ffi.use_raw_stream(tvm_ffi.device("cuda", 0), stream):
            calls(library.note_call, [stream], [])
    assert [entry for entry in journal(library) if entry[0] in "cw"] == [
        "call:0",
        "wait:7f00000000aa,7b0000000001",
        "call:7f00000000aa",
        "wait:0,7b0000000001",
        "call:0",
    ]


@pytest.mark.parametrize("captured", [True, False])
def test_networks_wait_for_each_other_only_where_they_share_memory(library: Any, captured: bool) -> None:
    one, two = (CudaCalls(tvm_ffi, 0, PLAIN if captured else None) for _ in range(2))
    one(lambda: None, [], [])
    with tvm_ffi.use_raw_stream(tvm_ffi.device("cuda", 0), STREAM):
        two(lambda: None, [], [])
    assert any(entry.startswith("wait") for entry in journal(library)) == (not captured)


def test_the_threads_device_is_as_it_was(library: Any) -> None:
    calls = CudaCalls(tvm_ffi, 1, PLAIN)
    calls(lambda: library.note_call(0), [], [])
    assert journal(library) == ["device:1", "event:2", "device:0", "device:1", "call:0", "record:0", "device:0"]


def test_a_capture_runs_once_between_two_waits_for_the_gpu(library: Any) -> None:
    seen = []
    CudaCalls(tvm_ffi, 0, PLAIN).capture(lambda *tensors: seen.append(tensors), [SPEC], [SPEC])
    assert seen == [(("x", "cuda", 0), ("x", "cuda", 0))]
    assert journal(library) == ["event:2", "finish", "finish"]


def test_what_is_not_captured_does_not_run_beforehand(library: Any) -> None:
    CudaCalls(tvm_ffi, 0, None).capture(lambda: library.note_call(0), [], [])
    assert "call:0" not in journal(library)


@pytest.mark.parametrize(("failures", "raises"), [(2, False), (3, True)])
def test_a_disturbed_capture_is_tried_again(library: Any, failures: int, raises: bool) -> None:
    outcomes = iter([True] * failures + [False])

    def function() -> None:
        if next(outcomes):
            raise RuntimeError("operation not permitted")

    calls = CudaCalls(tvm_ffi, 0, PLAIN)
    if raises:
        with pytest.raises(RuntimeError, match="not permitted"):
            calls.capture(function, [], [])
    else:
        calls.capture(function, [], [])
    assert journal(library).count("finish") == failures + (not raises) * 2


def test_no_call_runs_beside_a_capture(library: Any) -> None:
    one, two = (CudaCalls(tvm_ffi, 0, PLAIN) for _ in range(2))
    running, overlaps = threading.Event(), []

    def capture() -> None:
        running.set()
        overlaps.append(called.wait(0.1))

    called = threading.Event()
    other = threading.Thread(target=lambda: running.wait() and two(called.set, [], []))
    other.start()
    one.capture(capture, [], [])
    other.join()
    assert overlaps == [False] and called.is_set()


def test_it_says_whether_its_stream_is_captured(library: Any) -> None:
    calls = CudaCalls(tvm_ffi, 0, PLAIN)
    assert not calls.capturing()
    library.set_capturing(1)
    assert calls.capturing()


def test_a_thread_may_have_a_stream_of_its_own(library: Any) -> None:
    calls = CudaCalls(tvm_ffi, 0, PLAIN)
    with calls.own_stream():
        calls(library.note_call, [calls.stream()], [])
        assert calls.stream() == 0x7F1122334455
    assert calls.stream() == 0
    assert journal(library)[1:] == [
        "stream:1",
        "call:7f1122334455",
        "record:7f1122334455",
        "sync:7f1122334455",
        "destroy:7f1122334455",
    ]


def test_a_bound_call_is_one_launch(library: Any) -> None:
    """Captured on a stream of its own, kernel by kernel, then launched on the caller's, in order with other calls."""
    calls = CudaCalls(tvm_ffi, 0, PLAIN)

    def function(x: str, out: str) -> None:
        assert (x, out, PLAIN._on) == ("x", "out", True)
        library.note_call(calls.stream())

    graph = calls.graph(function, ["x"], ["out"])
    assert calls.stream() == 0 and not PLAIN._on
    calls(lambda: library.note_call(0), [], [])
    with tvm_ffi.use_raw_stream(tvm_ffi.device("cuda", 0), STREAM):
        calls.launch(graph)
    calls.free(graph)
    own = "7f1122334455"
    assert journal(library)[1:] == [
        "stream:1",
        f"begin:{own},2",
        f"call:{own}",
        f"end:{own}",
        "instantiate:7d0000000001,0",
        "free:7d0000000001",
        f"sync:{own}",
        f"destroy:{own}",
        "call:0",
        "record:0",
        "wait:7f00000000aa,7b0000000001",
        "launch:7c0000000001,7f00000000aa",
        "record:7f00000000aa",
        "done",
        "free:7c0000000001",
    ]


def test_a_bound_call_is_no_part_of_a_capture(library: Any) -> None:
    calls = CudaCalls(tvm_ffi, 0, PLAIN)
    graph = calls.graph(lambda: None, [], [])
    library.set_capturing(1)
    with tvm_ffi.use_raw_stream(tvm_ffi.device("cuda", 0), STREAM):
        with pytest.raises(InputError, match="a bound call is a graph and cannot be captured: call the network itself"):
            calls.launch(graph)
        with pytest.raises(InputError, match="cannot be bound on a stream that is captured: bind it before"):
            calls.graph(lambda: None, [], [])


def test_a_library_without_a_graph_is_no_part_of_a_capture(library: Any) -> None:
    calls = CudaCalls(tvm_ffi, 0, None)
    library.set_capturing(1)
    with (
        tvm_ffi.use_raw_stream(tvm_ffi.device("cuda", 0), STREAM),
        pytest.raises(InputError, match="--no-cuda-graph cannot be captured"),
    ):
        calls(lambda: library.note_call(0), [], [])
    assert not [entry for entry in journal(library) if entry[0] in "cw"]


def test_a_disturbed_binding_is_tried_again(library: Any) -> None:
    outcomes = iter([True, True, False])

    def function() -> None:
        if next(outcomes):
            raise RuntimeError("operation not permitted")

    CudaCalls(tvm_ffi, 0, PLAIN).graph(function, [], [])
    assert sum(entry.startswith("begin") for entry in journal(library)) == 3


def test_the_first_error_of_a_capture_is_told(library: Any) -> None:
    library.fail_capture()

    def function() -> None:
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        CudaCalls(tvm_ffi, 0, PLAIN).graph(function, [], [])


def test_what_cannot_be_captured_leaves_nothing_behind(library: Any) -> None:
    calls = CudaCalls(tvm_ffi, 0, PLAIN)
    library.fail_capture()
    with pytest.raises(RuntimeError, match="not permitted"):
        calls.graph(lambda: None, [], [])
    assert journal(library)[-1].startswith("destroy") and not PLAIN._on and calls.stream() == 0


@pytest.mark.parametrize(("captured", "plainly"), [(1, True), (0, False)])
def test_kernels_are_captured_one_by_one_by_a_caller(library: Any, captured: int, plainly: bool) -> None:
    """Nor may a captured stream wait for what was recorded outside."""
    calls = CudaCalls(tvm_ffi, 0, PLAIN)
    library.set_capturing(captured)
    with tvm_ffi.use_raw_stream(tvm_ffi.device("cuda", 0), STREAM):
        calls(lambda: library.note_call(0 if PLAIN._on else 1), [], [])
    assert journal(library)[1:] == (["call:0"] if plainly else ["call:1", "record:7f00000000aa"])
