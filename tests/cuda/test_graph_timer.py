"""The graph timer calls CUDA's runtime in the right order with whole handles; a stand-in library plays the runtime."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tvm_sparse.cuda import runtime as cuda_runtime
from tvm_sparse.cuda.graph_timer import GraphTimer

#: Handles are 64 bits wide; every call is written down; launches advance a clock by 2 ms for each captured call.
SOURCE = r"""
#include <stdio.h>
#include <string.h>
static char journal[65536]; static char *end = journal;
static long captured; static double now; static int failing;
#define NOTE(...) (end += snprintf(end, journal + sizeof journal - end, __VA_ARGS__))
typedef void *handle;
const char *read_journal(void) { return journal; }
void fail_capture(void) { failing = 1; }
void note_call(long stream) { captured++; NOTE("call:%lx ", stream); }
const char *cudaGetErrorString(int code) { return code == 900 ? "not permitted when stream is capturing" : "?"; }
int cudaSetDevice(int i) { NOTE("device:%d ", i); return 0; }
int cudaStreamCreate(handle *s) { *s = (handle)0x7f1122334455; return 0; }
int cudaEventCreate(handle *e) { static long next = 0x7e0000000001; *e = (handle)next++; return 0; }
int cudaStreamSynchronize(handle s) { NOTE("sync:%lx ", (long)s); return 0; }
int cudaStreamBeginCapture(handle s, int mode) { captured = 0; NOTE("begin:%lx,%d ", (long)s, mode); return 0; }
int cudaStreamEndCapture(handle s, handle *g) {
    *g = (handle)0x7d0000000001; NOTE("end:%lx ", (long)s); return failing ? 900 : 0; }
int cudaGraphInstantiate(handle *x, handle g, unsigned long long flags) {
    *x = (handle)0x7c0000000001; NOTE("instantiate:%lx,%llu ", (long)g, flags); return 0; }
int cudaGraphLaunch(handle x, handle s) { now += 2.0 * captured; NOTE("launch:%lx,%lx ", (long)x, (long)s); return 0; }
int cudaGraphExecDestroy(handle x) { NOTE("free:%lx ", (long)x); return 0; }
int cudaGraphDestroy(handle g) { NOTE("free:%lx ", (long)g); return 0; }
static double at[2];
int cudaEventRecord(handle e, handle s) { at[((long)e + 1) % 2] = now; return 0; }
int cudaEventSynchronize(handle e) { return 0; }
int cudaEventElapsedTime(float *ms, handle a, handle b) {
    *ms = at[((long)b + 1) % 2] - at[((long)a + 1) % 2]; return 0; }
"""
STREAM = 0x7F1122334455


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    (tmp_path / "cudart.c").write_text(SOURCE)
    library = tmp_path / "libcudart.so"
    subprocess.run(["cc", "-w", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "cudart.c")], check=True)
    monkeypatch.setattr(cuda_runtime, "load_cudart", lambda: str(library))
    loaded = ctypes.CDLL(str(library))
    loaded.read_journal.restype = ctypes.c_char_p
    loaded.note_call.argtypes = [ctypes.c_long]
    return loaded


def call_on(runtime: Any) -> Any:
    """A call that notes the stream that TVM would launch on."""
    from tvm_ffi import core

    def call() -> None:
        previous = core._env_set_current_stream(2, 1, 0)
        core._env_set_current_stream(2, 1, previous)
        runtime.note_call(getattr(previous, "value", previous) or 0)

    return call


def test_times_of_captured_calls(runtime: Any) -> None:
    timer = GraphTimer(1)
    call = call_on(runtime)
    timer.warm(call)
    assert timer.calls_us(call, calls=3, repeats=2) == [2000.0, 2000.0]
    journal = runtime.read_journal().decode().split()
    stream = f"{STREAM:x}"
    launch = f"launch:7c0000000001,{stream}"
    assert journal == [
        "device:1",
        f"call:{stream}",
        f"sync:{stream}",
        f"begin:{stream},2",
        *[f"call:{stream}"] * 3,
        f"end:{stream}",
        "instantiate:7d0000000001,0",
        *[launch] * 3,
        "free:7c0000000001",
        "free:7d0000000001",
    ]


def test_a_call_that_cannot_be_captured_is_an_error(runtime: Any) -> None:
    timer = GraphTimer(0)
    runtime.fail_capture()
    with pytest.raises(RuntimeError, match="cudaStreamEndCapture: not permitted when stream is capturing"):
        timer.calls_us(lambda: None, calls=1, repeats=1)


def test_no_runtime_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_runtime, "load_cudart", lambda: None)
    with pytest.raises(RuntimeError, match="no CUDA runtime"):
        GraphTimer(0)
