"""Run the CUDA C++ that TVM generates on the CPU: no GPU, no driver, no CUDA compiler, only g++.

Every CUDA thread is a fiber; __syncthreads hands over to the next one. So the kernels' arithmetic, indices, barriers
and thread counts are tested, not the GPU compiler. Memory is checked by the address sanitizer; shared memory and
buffers between kernels start as NaN.
"""

from __future__ import annotations

import math
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

PRELUDE = r"""
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <limits>
#include <ucontext.h>
#include <vector>
using std::max; using std::min;
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
static int2 make_int2(int x, int y) { return {x, y}; }
static float2 make_float2(float x, float y) { return {x, y}; }
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
// 16-bit elements: bits that turn into float32 and back, rounded to nearest even, after every operation.
typedef unsigned short ushort;
template <class Bits> struct element {
  ushort bits = 0;
  element() = default;
  element(float value) : bits(Bits::from(value)) {}
  operator float() const { return Bits::to(bits); }
};
struct half_bits {
  static ushort from(float value) { _Float16 half = value; ushort bits; memcpy(&bits, &half, 2); return bits; }
  static float to(ushort bits) { _Float16 half; memcpy(&half, &bits, 2); return half; }
};
struct bfloat_bits {
  static ushort from(float value) {
    unsigned bits; memcpy(&bits, &value, 4);
    return value != value ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  }
  static float to(ushort bits) { float value; unsigned wide = bits << 16; memcpy(&value, &wide, 4); return value; }
};
typedef element<half_bits> half, __half; typedef element<bfloat_bits> nv_bfloat16, __nv_bfloat16;
template <class T> struct alignas(4) two { T x, y; };
template <class T> struct alignas(8) four { T x, y, z, w; };
typedef two<half> half2; typedef four<half> half4;
typedef two<nv_bfloat16> nv_bfloat162; typedef four<nv_bfloat16> nv_bfloat164;
static half2 make_half2(half x, half y) { return {x, y}; }
static half4 make_half4(half x, half y, half z, half w) { return {x, y, z, w}; }
static nv_bfloat162 make_nv_bfloat162(nv_bfloat16 x, nv_bfloat16 y) { return {x, y}; }
static nv_bfloat164 make_nv_bfloat164(nv_bfloat16 x, nv_bfloat16 y, nv_bfloat16 z, nv_bfloat16 w) {
  return {x, y, z, w};
}
static half __float2half_rn(float value) { return value; }
static nv_bfloat16 __float2bfloat16_rn(float value) { return value; }
static half2 __half2half2(half value) { return {value, value}; }
static half fused(half a, half b, half c) { return (_Float16)((double)(float)a * (float)b + (float)c); }
static half2 __hfma2(half2 a, half2 b, half2 c) { return {fused(a.x, b.x, c.x), fused(a.y, b.y, c.y)}; }
struct alignas(16) uint4 { unsigned x, y, z, w; };
static uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
template <class T> unsigned packed(T x, T y) { return x.bits | (unsigned)y.bits << 16; }
static unsigned __pack_half2(half x, half y) { return packed(x, y); }
static unsigned __pack_nv_bfloat162(nv_bfloat16 x, nv_bfloat16 y) { return packed(x, y); }
struct dim { int x = 0, y = 0, z = 0; };
static dim threadIdx, blockIdx;
static float* shared_memory;  // on the next 16 bytes, as on a GPU
static size_t shared_words;
static std::vector<ucontext_t> fibers;
static std::vector<std::vector<char>> stacks;
static ucontext_t scheduler;
static int running;
static void __syncthreads() { swapcontext(&fibers[running], &scheduler); }
// Shuffles of a warp that all threads of the block make together.
static std::vector<float> exchanged;
static unsigned __activemask() { return ~0u; }
static float exchange(float value, int from) {
  exchanged.resize(fibers.size());
  exchanged[running] = value; __syncthreads();
  float other = exchanged[from < (int)fibers.size() ? from : running]; __syncthreads();
  return other;
}
static float __shfl_down_sync(unsigned, float value, int by, int width) {
  return exchange(value, running % width + by < width ? running + by : running);
}
static float __shfl_sync(unsigned, float value, int lane, int width) {
  return exchange(value, running / width * width + lane % width);
}
// Asynchronous copies, made as late as the kernel's waits allow.
struct copy { void* to; const void* from; int bytes, read; };
static std::vector<std::deque<std::vector<copy>>> committed;
static std::vector<std::vector<copy>> pending;
static void copy_async(void* to, const void* from, int bytes, int read) {
  if ((size_t)to % bytes || (size_t)from % bytes) { fprintf(stderr, "a copy that is not aligned\n"); exit(5); }
  pending[running].push_back({to, from, bytes, read});
}
static void commit_copies() { committed[running].push_back(pending[running]); pending[running].clear(); }
static void wait_for_copies(size_t left) {
  for (auto& groups = committed[running]; groups.size() > left; groups.pop_front())
    for (copy& each : groups.front()) {
      memset(each.to, 0, each.bytes);
      memcpy(each.to, each.from, each.read);
    }
}
static float* tvm_builtin_cuda_cvta_generic_to_shared(float* p) { return p; }
static void tvm_builtin_ptx_cp_async_ca_src_size_async_ca_shared_global_4(float* to, const float* from, unsigned size) {
  copy_async(to, from, 4, size);
}
template <class Kernel> struct Launch {
  static Kernel* kernel;
  static std::vector<char>* finished;
  static void body() { (*kernel)(); (*finished)[running] = 1; }
};
template <class Kernel> Kernel* Launch<Kernel>::kernel;
template <class Kernel> std::vector<char>* Launch<Kernel>::finished;
template <class Kernel> void launch(dim grid, dim block, Kernel kernel) {
  int threads = block.x * block.y * block.z;
  committed.assign(threads, {}); pending.assign(threads, {});
  fibers.resize(threads); stacks.assign(threads, std::vector<char>(1 << 16));
  for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
    std::vector<char> finished(threads, 0);
    Launch<Kernel>::kernel = &kernel; Launch<Kernel>::finished = &finished;
    std::fill(shared_memory, shared_memory + shared_words, std::numeric_limits<float>::quiet_NaN());
    for (int t = 0; t < threads; ++t) {
      getcontext(&fibers[t]);
      fibers[t].uc_stack.ss_sp = stacks[t].data(); fibers[t].uc_stack.ss_size = stacks[t].size();
      fibers[t].uc_link = &scheduler;
      makecontext(&fibers[t], (void (*)())Launch<Kernel>::body, 0);
    }
    for (int left = threads; left;) {
      int before = left;
      for (int t = 0; t < threads; ++t) {
        threadIdx.x = t % block.x; threadIdx.y = t / block.x % block.y; threadIdx.z = t / block.x / block.y;
        running = t;
        swapcontext(&scheduler, &fibers[t]);
        left -= finished[t];
      }
      // All threads meet at a barrier, or all of them end: a part that does is a hang on a GPU.
      if (left != before && left) { fprintf(stderr, "a barrier that not all threads reach\n"); exit(3); }
    }
  }
}
template <class T> std::vector<T> load(const char* path, size_t count) {
  std::vector<T> data(count);
  FILE* file = fopen(path, "rb");
  if (!file || fread(data.data(), sizeof(T), count, file) != count) exit(4);
  fclose(file);
  return data;
}
template <class T> void store(const char* path, const std::vector<T>& data) {
  FILE* file = fopen(path, "wb");
  if (!file || fwrite(data.data(), sizeof(T), data.size(), file) != data.size() || fclose(file)) exit(4);
}
"""

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
    flags = ["-O1", "-g0", "-w", "-std=c++17", "-fsanitize=address", "-fno-sanitize-recover=all"]
    subprocess.run(["g++", *flags, "-o", "kernel", "kernel.cc"], cwd=folder, check=True)
    environment = {"ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(["./kernel"], cwd=folder, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[:3000]
    outputs = {name: array for name, array in arrays.items() if name.startswith("out")}
    return {
        name: np.fromfile(folder / f"{name}.bin", array.dtype).reshape(array.shape) for name, array in outputs.items()
    }


def cuda_source(func: Any, target: Any) -> str:
    """What TVM generates: handed to its compile callback where this process has CUDA, kept as text where not."""
    import tvm
    import tvm_ffi

    from tvm_sparse.tvm_support import asynchronous_copies

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
    return seen[0] if seen else str(built.mod.imports[0].inspect_source())


def _program(source: str, func: Any, arrays: dict[str, np.ndarray], shared_bytes: int) -> str:
    """C++ that loads the arrays, runs the kernels of `source` one after the other, and stores the output."""
    words = -(-shared_bytes // 16) * 4
    functions = re.findall(r"^__forceinline__ __device__ (\w+ pair_\w*\(.*?^\})", source, ON_LINES)
    kernels = [*_asynchronous(source), *(f"static {function}" for function in functions)]
    steps = [f"shared_words = {words}; shared_memory = (float*)aligned_alloc(16, {max(words, 4) * 4});"]
    for name, array in arrays.items():
        kind = ELEMENTS[str(array.dtype)]
        steps.append(f'auto {name} = load<{kind}>("{name}.bin", {array.size});')
    for buffer in func.body.block.alloc_buffers:  # between kernels
        if buffer.scope() == "global":
            steps.append(f"std::vector<float> {buffer.name}({math.prod(int(e) for e in buffer.shape)}, NAN);")
    definition = r'^extern "C" __global__ void (?:__launch_bounds__\([\d, ]+\) )?((\w+)\(([^\n]*)\) \{\n.*?^\})'
    found = re.findall(definition, source, flags=ON_LINES)
    for (code, name, parameters), (blocks, threads) in zip(found, launches(func), strict=True):
        dynamic = r"extern __shared__ __align__\(64\) (\w+) (\w+)\[\];"
        code = re.sub(r"tvm_builtin_ptx_cp_async_commit_group\w*\(\)", "commit_copies()", code)
        code = re.sub(r"tvm_builtin_ptx_cp_async_wait_group\w*_(\d+)\(\)", r"wait_for_copies(\1)", code)
        kernels.append("static void " + re.sub(dynamic, r"\1* \2 = (\1*)shared_memory;", code))
        given = ", ".join(f"{parameter}.data()" for parameter in re.findall(r"(\w+)_ptr\b", parameters))
        block = ", ".join(map(str, threads))
        steps.append(f"launch(dim{{{blocks}, 1, 1}}, dim{{{block}}}, [&] {{ {name}({given}); }});")
    steps += [f'store("{name}.bin", {name});' for name in arrays if name.startswith("out")]
    return "\n".join([PRELUDE, "typedef unsigned char uchar;", *kernels, "int main() {", *steps, "}", ""])


def _asynchronous(source: str) -> list[str]:
    """Stand-ins for the functions that copy asynchronously, which TVM names after the sizes they take."""
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
