"""CUDA C++ to a fat binary with machine code for every named arch, through nvcc or NVRTC.

TVM's own callback compiles for one arch with `--use_fast_math`. Here: fused multiply-add, but division, square root and
denormals as IEEE 754 says, so that float32 results agree with the CPU's to rounding.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm_sparse.cuda.archs import parse_archs, sm_number
from tvm_sparse.cuda.fatbin import find_fatbins, pack_fatbin
from tvm_sparse.cuda.paths import find_library, find_nvcc
from tvm_sparse.errors import CompileError
from tvm_sparse.tvm_support.cuda_parts import compile_in_parts

MATH_FLAGS = ("--fmad=true", "--prec-div=true", "--prec-sqrt=true", "--ftz=false")
_NVRTC_SONAME = "libnvrtc.so.13"
_TIMEOUT_S = 1800

# TVM's generated code leans on a host header for this name, and NVRTC has no host headers.
_NVRTC_PREAMBLE = """#include <cuda/std/limits>
#ifndef INFINITY
#define INFINITY (::cuda::std::numeric_limits<float>::infinity())
#endif
"""


@dataclass(frozen=True)
class CudaCompiler:
    """A way to compile CUDA C++: `kind` is "nvcc" or "nvrtc", `location` the program or the library."""

    kind: str
    location: str

    def compile(self, source: str, archs: Sequence[str]) -> bytes:
        """Machine code for each arch, in one fat binary.

        Parameters
        ----------
        source
            CUDA C++ as TVM generates it.
        archs
            Like ("sm_80", "sm_90").

        Returns
        -------
        bytes
            What `cuModuleLoadData` takes.

        Raises
        ------
        CompileError
            An arch is unknown, or the compiler refuses the source or the arch.
        """
        archs = parse_archs(archs)
        compile_all = _nvcc_fatbin if self.kind == "nvcc" else _nvrtc_fatbin
        binary = compile_all(self.location, source, archs)
        expected = {sm_number(arch) for arch in archs}
        found = find_fatbins(binary)
        if len(found) != 1 or set(found[0].sm_numbers) != expected:
            raise CompileError(f"{self.kind} gave no machine code for {', '.join(archs)}")
        return binary


def cuda_compiler(kind: str | None = None) -> CudaCompiler:
    """The CUDA compiler to use: nvcc if there is one, else NVRTC.

    Parameters
    ----------
    kind
        "nvcc" or "nvrtc" to insist on one; by default TVM_CUDA_COMPILE_MODE, else what is found.

    Raises
    ------
    CompileError
        None is installed, or not the one asked for.
    """
    kind = kind or os.environ.get("TVM_CUDA_COMPILE_MODE") or None
    if kind not in (None, "nvcc", "nvrtc"):
        raise CompileError(f"the CUDA compiler must be nvcc or nvrtc, not {kind!r}")
    nvcc = find_nvcc() if kind != "nvrtc" else None
    if nvcc is not None:
        return CudaCompiler("nvcc", str(nvcc))
    nvrtc = find_library(_NVRTC_SONAME) if kind != "nvcc" else None
    if nvrtc is not None and importlib.util.find_spec("cuda") and importlib.util.find_spec("cuda.bindings"):
        return CudaCompiler("nvrtc", str(nvrtc))
    raise CompileError(
        f'a CUDA target needs {kind or "nvcc or nvrtc"}: pip install "tvm-sparse[cuda]", or install the CUDA 13 '
        "toolkit and put its nvcc on PATH"
    )


def _nvcc_fatbin(nvcc: str, source: str, archs: Sequence[str]) -> bytes:
    flags = ["-O3", "-std=c++17", "-w", *MATH_FLAGS, "--expt-relaxed-constexpr"]
    if (linked := compile_in_parts(nvcc, source, archs, flags, _TIMEOUT_S)) is not None:
        return linked
    gencode = [f"-gencode=arch=compute_{arch[3:]},code={arch}" for arch in archs]
    with tempfile.TemporaryDirectory(prefix="tvm-sparse-") as folder:
        (Path(folder) / "kernels.cu").write_text(source)
        command = [nvcc, "--fatbin", *flags, "--threads=0", *gencode, "-o", "kernels.fatbin", "kernels.cu"]
        try:
            run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CompileError(f"{nvcc} does not run: {error}") from error
        if run.returncode != 0:
            raise CompileError(f"nvcc refuses the code for {', '.join(archs)}: {_first_error(run.stderr + run.stdout)}")
        return (Path(folder) / "kernels.fatbin").read_bytes()


def _nvrtc_fatbin(library: str, source: str, archs: Sequence[str]) -> bytes:
    return pack_fatbin({arch: _nvrtc_cubin(library, source, arch) for arch in archs})


def _nvrtc_cubin(library: str, source: str, arch: str) -> bytes:
    from cuda.bindings import nvrtc

    def call(name: str, *arguments: Any) -> Any:
        status, *results = getattr(nvrtc, name)(*arguments)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CompileError(f"{name} for {arch} fails: {status.name}")
        return results[0] if results else None

    include = Path(library).parents[1] / "include"  # headers of the same release as the library
    options = [f"--gpu-architecture={arch}", "--device-int128", "-std=c++17", "-w", *MATH_FLAGS]
    options += [f"-I{include}", f"-I{include / 'cccl'}"]
    program = call("nvrtcCreateProgram", (_NVRTC_PREAMBLE + source).encode(), b"kernels.cu", 0, None, None)
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = bytearray(call("nvrtcGetProgramLogSize", program))
            call("nvrtcGetProgramLog", program, log)
            raise CompileError(f"nvrtc refuses the code for {arch}: {_first_error(log.decode(errors='replace'))}")
        cubin = bytearray(call("nvrtcGetCUBINSize", program))
        call("nvrtcGetCUBIN", program, cubin)
        return bytes(cubin)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _first_error(log: str) -> str:
    lines = [line.strip() for line in log.replace("\0", "").splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() or "fatal" in line.lower()]
    return [*errors, *lines, "no log"][0]
