"""A library in the place of CUDA's runtime, so that tests see what would be asked of it."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tvm_sparse.cuda import runtime as cuda_runtime

#: Handles are 64 bits wide; every call is written down; launches advance a clock by 2 ms for each captured call.
SOURCE = r"""
#include <stdio.h>
#include <string.h>
static char journal[65536]; static char *end = journal;
static long captured; static double now; static int failing, current, capturing, refused = -1;
#define NOTE(...) (end += snprintf(end, journal + sizeof journal - end, __VA_ARGS__))
typedef void *handle;
const char *read_journal(void) { return journal; }
void fail_capture(void) { failing = 1; }
void note_call(long stream) { captured++; NOTE("call:%lx ", stream); }
const char *cudaGetErrorString(int code) { return code == 900 ? "not permitted when stream is capturing" : "?"; }
int cudaSetDevice(int i) { current = i; NOTE("device:%d ", i); return 0; }
int cudaStreamCreate(handle *s) { *s = (handle)0x7f1122334455; return 0; }
int cudaStreamCreateWithFlags(handle *s, unsigned flags) {
    *s = (handle)0x7f1122334455; NOTE("stream:%u ", flags); return 0; }
int cudaStreamDestroy(handle s) { NOTE("destroy:%lx ", (long)s); return 0; }
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
int cudaEventCreateWithFlags(handle *e, unsigned flags) {
    NOTE("event:%u ", flags); *e = (handle)0x7b0000000001; return 0; }
int cudaStreamWaitEvent(handle s, handle e, unsigned flags) { NOTE("wait:%lx,%lx ", (long)s, (long)e); return 0; }
int cudaGetDeviceCount(int *count) { *count = 2; return 0; }
int cudaGetDevice(int *i) { *i = current; return 0; }
int cudaDeviceSynchronize(void) { NOTE("finish "); return 0; }
int cudaStreamIsCapturing(handle s, int *status) { *status = capturing; return 0; }
int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 9 : attribute == 76 ? 0 : attribute; return attribute == refused ? 1 : 0; }
void set_capturing(int on) { capturing = on; }
void refuse(int attribute) { refused = attribute; }
static double at[2];
int cudaEventRecord(handle e, handle s) {
    at[((long)e + 1) % 2] = now; if ((long)e >> 36 == 0x7b0) NOTE("record:%lx ", (long)s); return 0; }
int cudaEventSynchronize(handle e) { if ((long)e >> 36 == 0x7b0) NOTE("done "); return 0; }
int cudaEventElapsedTime(float *ms, handle a, handle b) {
    *ms = at[((long)b + 1) % 2] - at[((long)a + 1) % 2]; return 0; }
"""
STREAM = 0x7F1122334455


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Build it and let `CudaRuntime` find it; returns it."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    (folder / "cudart.c").write_text(SOURCE)
    library = folder / "libcudart.so"
    subprocess.run(["cc", "-w", "-shared", "-fPIC", "-o", str(library), str(folder / "cudart.c")], check=True)
    monkeypatch.setattr(cuda_runtime, "load_cudart", lambda: str(library))
    loaded = ctypes.CDLL(str(library))
    loaded.read_journal.restype = ctypes.c_char_p
    loaded.note_call.argtypes = [ctypes.c_long]
    return loaded


def journal(library: Any) -> list[str]:
    """What was asked of it, in order."""
    return str(library.read_journal().decode()).split()
