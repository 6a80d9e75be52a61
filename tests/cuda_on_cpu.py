"""Run the CUDA C++ that TVM generates on the CPU: no GPU, no driver, no CUDA compiler, only g++.

Every CUDA thread is a fiber; __syncthreads hands over to the next one. So the kernels' arithmetic, indices, barriers
and thread counts are tested, not the GPU compiler. Memory is checked by the address sanitizer; shared memory and
buffers between kernels start as NaN.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tests.ptx_on_cpu import to_cpp

#: What the generated code finds of CUDA: a header for each program, and what is compiled once for all of them.
DEVICE = Path(__file__).parent / "emulated_cuda"
FLAGS = ("-O1", "-g0", "-w", "-std=c++17", "-fsanitize=address", "-fno-sanitize-recover=all")
#: What CUDA calls the elements of an array.
ELEMENTS = {"float32": "float", "int32": "int", "uint16": "ushort", "float16": "half", "bfloat16": "nv_bfloat16"}
ON_LINES = re.MULTILINE | re.DOTALL


def run(func: Any, target: Any, arrays: dict[str, np.ndarray], shared_bytes: int, folder: Path) -> np.ndarray:
    """The array `out` after running a scheduled PrimFunc on float32, float16 or bfloat16; see `outputs_of`."""
    return outputs_of(func, target, arrays, shared_bytes, folder)["out"]


def outputs_of(
    func: Any, target: Any, arrays: dict[str, np.ndarray], shared_bytes: int, folder: Path
) -> dict[str, np.ndarray]:
    """The arrays whose names begin with "out" after running a scheduled PrimFunc.

    Parameters
    ----------
    func : PrimFunc with thread-bound loops
    arrays : every parameter by name; those that begin with "out" as they are before
    shared_bytes : shared memory a block may touch
    folder : for the program and its files
    """
    (folder / "kernel.cc").write_text(_program(cuda_source(func, target), func, arrays, shared_bytes))
    for name, array in arrays.items():
        np.ascontiguousarray(array).tofile(folder / f"{name}.bin")
    device = Path(_device().name)
    sources = ["kernel.cc", str(device / "device.o")]
    subprocess.run(["g++", *FLAGS, f"-I{device}", "-o", "kernel", *sources], cwd=folder, check=True)
    environment = {"ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(["./kernel"], cwd=folder, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[:3000]
    outputs = {name: array for name, array in arrays.items() if name.startswith("out")}
    return {
        name: np.fromfile(folder / f"{name}.bin", array.dtype).reshape(array.shape) for name, array in outputs.items()
    }


@cache
def _device() -> tempfile.TemporaryDirectory[str]:
    """A folder with what every program shares, compiled: most of a program's compile time, were it in each."""
    folder = tempfile.TemporaryDirectory(prefix="emulated-cuda-")
    shutil.copy(DEVICE / "device.h", folder.name)
    for part in (["-x", "c++-header", "device.h"], ["-c", str(DEVICE / "device.cc")]):
        subprocess.run(["g++", *FLAGS, *part], cwd=folder.name, check=True)
    return folder


def cuda_source(func: Any, target: Any) -> str:
    """What a build compiles: handed to TVM's compile callback where this process has CUDA, kept as text where not."""
    import tvm
    import tvm_ffi

    from tvm_sparse.tvm_support import asynchronous_copies
    from tvm_sparse.tvm_support.fresh_places import with_fresh_places

    seen: list[str] = []

    def keep(source: str) -> bytearray:
        seen.append(source)
        return bytearray(b"never loaded")

    name = "tvm_callback_cuda_compile"
    before = tvm_ffi.get_global_func(name, allow_missing=True)
    tvm_ffi.register_global_func(name, keep, override=True)
    try:
        with target, asynchronous_copies():
            built = tvm.compile(tvm.IRModule({"main": func}), target=target)
    finally:
        if before is None:
            tvm_ffi.remove_global_func(name)
        else:
            tvm_ffi.register_global_func(name, before, override=True)
    return with_fresh_places(seen[0] if seen else str(built.mod.imports[0].inspect_source()))


def _program(source: str, func: Any, arrays: dict[str, np.ndarray], shared_bytes: int) -> str:
    """C++ that loads the arrays, runs the kernels of `source` one after the other, and stores the output."""
    functions = re.findall(r"^__forceinline__ __device__ (\w+ (?:pair|nonzeros|jumps)_\w*\(.*?^\})", source, ON_LINES)
    kernels = [*_asynchronous(source), *(f"static {to_cpp(function)}" for function in functions)]
    steps = [f"allocate_shared({shared_bytes});"]
    for name, array in arrays.items():
        kind = ELEMENTS[str(array.dtype)]
        steps.append(f'static auto {name} = ({kind}*)load("{name}.bin", {array.nbytes});')
    for buffer in func.body.block.alloc_buffers:  # between kernels
        if buffer.scope() == "global":
            steps.append(f"static auto {buffer.name} = poisoned({math.prod(int(e) for e in buffer.shape)});")
    definition = r'^extern "C" __global__ void (?:__launch_bounds__\([\d, ]+\) )?((\w+)\(([^\n]*)\) \{\n.*?^\})'
    found = re.findall(definition, source, flags=ON_LINES)
    for (code, name, parameters), (blocks, threads) in zip(found, launches(func), strict=True):
        dynamic = r"extern __shared__ __align__\(64\) (\w+) (\w+)\[\];"
        code = re.sub(r"tvm_builtin_ptx_cp_async_commit_group\w*\(\)", "commit_copies()", code)
        code = re.sub(r"tvm_builtin_ptx_cp_async_wait_group\w*_(\d+)\(\)", r"wait_for_copies(\1)", code)
        kernels.append("static void " + re.sub(dynamic, r"\1* \2 = (\1*)shared_memory;", code))
        given = ", ".join(re.findall(r"(\w+)_ptr\b", parameters))
        block = ", ".join(map(str, threads))
        steps.append(f"launch(dim{{{blocks}, 1, 1}}, dim{{{block}}}, [] {{ {name}({given}); }});")
    steps += [
        f'store("{name}.bin", {name}, {array.nbytes});' for name, array in arrays.items() if name.startswith("out")
    ]
    return "\n".join(['#include "device.h"', *kernels, "int main() {", *steps, "}", ""])


def _asynchronous(source: str) -> list[str]:
    """Stand-ins for the functions that copy asynchronously or use tensor cores, named after the sizes they take."""
    functions = []
    for name, bytes_, to, from_ in sorted(
        set(re.findall(r"(ptx_cp_async_legacy_\w*?c[ga]_(\d+)_(\d+)_(\d+))\(", source))
    ):
        copy = f"copy_async((char*)to + to_at * {to}, (const char*)from + from_at * {from_}, {bytes_}, {bytes_})"
        if "pred" in name:
            zero = f"memset((char*)to + to_at * {to}, 0, {bytes_})"
            take = "void* to, int to_at, const void* from, int from_at, int inside"
            body = f"({take}) {{ if (inside) {copy}; else {zero}; }}"
        else:
            body = f"(void* to, int to_at, const void* from, int from_at) {{ {copy}; }}"
        functions.append(f"static void {name}{body}")
    for name, bytes_ in sorted(set(re.findall(r"(tvm_builtin_ptx_cp_async_c\w_async_\w+_global_(\d+))\(", source))):
        copy = f"copy_async(to, from, {bytes_}, {bytes_})"
        functions.append(f"static void {name}(void* to, const void* from) {{ {copy}; }}")
    for name, element, *sizes in sorted(set(re.findall(r"(mma_(\w+?)_(\d+)_(\d+)_(\d+))\(", source))):
        take = ", ".join(f"const {element}* {operand}" for operand in ("weights", "first", "second"))
        call = f"multiply_add(sums, weights, first, second, {sizes[0]}, {sizes[1]}, 8 * {sizes[2]})"
        functions.append(f"static void {name}(float* sums, {take}) {{ {call}; }}")
    return functions


def launches(func: Any) -> list[tuple[int, list[int]]]:
    """(blocks, threads along x, y, z) of every kernel, in order."""
    import tvm_ffi
    from tvm import tirx

    body = func.body.block.body
    kernels = list(body.seq) if hasattr(body, "seq") else [body]
    found = []
    for kernel in kernels:
        extents: dict[str, int] = {}

        def visit(loop: Any, extents: dict[str, int] = extents) -> None:
            if loop.thread_binding is not None:
                extents[str(loop.thread_binding.thread_tag)] = int(loop.extent)

        tvm_ffi.structural_walk(kernel, (tirx.For, visit), order="pre")
        found.append((extents["blockIdx.x"], [extents.get(f"threadIdx.{axis}", 1) for axis in "xyz"]))
    return found
