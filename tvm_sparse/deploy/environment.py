"""What a bug report or a measurement should say about the machine. Imports nothing heavy."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from typing import Any

from tvm_sparse.cuda.paths import CUDART_SONAME, find_library, find_nvcc
from tvm_sparse.deploy.machine import cpu_features, cpu_model, default_threads, usable_cpus

_PACKAGES = (
    "tvm-sparse",
    "apache-tvm",
    "apache-tvm-ffi",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxslim",
    "torch",
    "cuda-bindings",
)
_VECTOR_PREFIXES = ("avx", "fma", "f16c", "amx", "asimd", "sve")
_TIMEOUT_S = 10


def collect_env() -> dict[str, Any]:
    """Versions, CPU, GPUs and compilers as plain values; what is missing is None."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": cpu_model(),
        "vector_features": sorted(name for name in cpu_features() or () if name.startswith(_VECTOR_PREFIXES)),
        "logical_cpus": len(usable_cpus()),
        "default_threads": default_threads(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "cuda": {
            "gpus": _gpus(),
            "nvcc": _last_line([str(find_nvcc()), "--version"]) if find_nvcc() else None,
            "nvrtc": _path("libnvrtc.so.13"),
            "cudart": _path(CUDART_SONAME),
        },
        "cxx_compiler": _cxx_compiler(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _path(soname: str) -> str | None:
    found = find_library(soname)
    return str(found) if found else None


def _gpus() -> list[str] | None:
    """ "name, driver version, compute capability" of each GPU; None without a driver."""
    query = "--query-gpu=name,driver_version,compute_cap"
    text = _output(["nvidia-smi", query, "--format=csv,noheader"]) if shutil.which("nvidia-smi") else None
    return text.splitlines() if text is not None else None


def _cxx_compiler() -> str | None:
    named = os.environ.get("CXX") or os.environ.get("CC")
    compiler = named or next(filter(shutil.which, ("g++", "gcc", "clang++", "clang", "c++", "cc")), None)
    text = _output([*compiler.split(), "--version"]) if compiler else None
    return text.splitlines()[0] if text else None


def _last_line(command: list[str]) -> str | None:
    text = _output(command)
    return text.splitlines()[-1] if text else None


def _output(command: list[str]) -> str | None:
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() if run.returncode == 0 else None
