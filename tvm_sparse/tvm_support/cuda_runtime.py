"""Make TVM's CUDA code generation work on a machine without a GPU driver.

TVM loads libtvm_runtime_cuda.so when it is imported. That needs libcuda.so.1 (the driver) and libcudart.so.13; where
either is missing TVM goes on without a word, and a CUDA build then embeds CUDA source text in place of machine code.
The library can also be loaded after TVM, so this happens only when a CUDA target is asked for: find cudart, put a stub
in the driver's place where there is none, load the library, and check that it registered itself. Needless once TVM can
generate machine code without its CUDA runtime.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from tvm_sparse.cuda.paths import CUDART_SONAME, DRIVER_SONAME, can_load, load_cudart
from tvm_sparse.errors import CompileError
from tvm_sparse.tvm_support.release_check import import_tvm

_DRIVER_FUNCTIONS = (
    "cuDeviceGetName",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuLaunchKernelEx",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuTensorMapEncodeTiled",
)
_CUDA_ERROR_UNKNOWN = 999


def enable_cuda() -> None:
    """Make sure that TVM generates CUDA machine code in this process, a driver or not.

    Raises
    ------
    CompileError
        No CUDA runtime library, or no C compiler to build the stub of the driver with.
    """
    tvm = import_tvm()
    if _is_enabled(tvm):
        return
    if load_cudart() is None:
        raise CompileError(
            f'a CUDA target needs {CUDART_SONAME}: pip install "tvm-sparse[cuda]", or install the CUDA 13 toolkit and '
            "set CUDA_PATH to it"
        )
    if not can_load(DRIVER_SONAME):
        stub = driver_stub()
        if not can_load(stub):
            raise CompileError(f"the stub of the GPU driver, {stub}, cannot be loaded: remove it and try again")
    library = Path(tvm.base._LOADED_LIBS["tvm_runtime"]._name).resolve().with_name("libtvm_runtime_cuda.so")
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        raise CompileError(f"TVM's CUDA runtime cannot be loaded: {error}") from error
    if not _is_enabled(tvm):
        raise CompileError(f"{library} was loaded but did not register itself with TVM: reinstall apache-tvm")


def _is_enabled(tvm: object) -> bool:
    return tvm.get_global_func("device_api.cuda", allow_missing=True) is not None  # type: ignore[attr-defined]


def driver_stub() -> Path:
    """Build, once, a library named libcuda.so.1 whose functions all fail; kept in the user's cache folder.

    Raises
    ------
    CompileError
        There is no C compiler, or it fails.
    """
    source = "".join(f"int {name}(void) {{ return {_CUDA_ERROR_UNKNOWN}; }}\n" for name in _DRIVER_FUNCTIONS)
    digest = hashlib.sha256((source + platform.machine()).encode()).hexdigest()[:16]
    stub = _cache_dir() / f"libcuda-stub-{digest}.so"
    if not stub.exists():
        with tempfile.TemporaryDirectory(dir=stub.parent) as folder:
            built = Path(folder) / "stub.so"
            (Path(folder) / "stub.c").write_text(source)
            _run_c_compiler(["-shared", "-fPIC", f"-Wl,-soname,{DRIVER_SONAME}", "-o", "stub.so", "stub.c"], folder)
            os.replace(built, stub)
    return stub


def _cache_dir() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tvm-sparse"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):
        pass
    return Path(tempfile.mkdtemp(prefix="tvm-sparse-"))


def _run_c_compiler(arguments: list[str], folder: str) -> None:
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang", "g++", "c++")), None)
    if compiler is None:
        raise CompileError("a CUDA target on a machine without a GPU driver needs a C compiler: install gcc or set CC")
    try:
        run = subprocess.run([*compiler.split(), *arguments], cwd=folder, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompileError(f"the C compiler {compiler!r} does not run: {error}") from error
    if run.returncode != 0:
        last = (run.stderr.strip().splitlines() or ["no message"])[-1]
        raise CompileError(f"the C compiler {compiler!r} cannot build the stub of the GPU driver: {last}")
