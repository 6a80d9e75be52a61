"""A large CUDA source compiled in parts holds the same kernels; what cannot be split is compiled whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_tvm_support import needs_cuda
from tvm_sparse.cuda.fatbin import find_fatbins
from tvm_sparse.cuda.paths import find_nvcc
from tvm_sparse.errors import CompileError
from tvm_sparse.tvm_support import cuda_compiler, cuda_parts
from tvm_sparse.tvm_support.cuda_parts import split_kernels

HEAD = "#include <cstdint>\n__forceinline__ __device__ float twice(float x) { return 2 * x; }\n"
SIZES = (400, 30, 200, 150, 20)


def own_function(index: int) -> str:
    """As long as the kernel that calls it, with a call that only the assembly seems to make."""
    lines = f"    fma.rn.f32 %0, %0, 0f3f800000, %0; // nonzeros_{index + 1}(x)\n" * SIZES[index]
    body = f'  asm volatile(R"({{\n{lines}  }})"\n    : "+f"(part[0]) : : "memory");\n'
    return (
        f"__forceinline__ __device__ void nonzeros_{index}(float* part) {{\n{body}  part[0] = half_of(part[0]);\n}}\n"
    )


HALF = "__forceinline__ __device__ float half_of(float x) {\n  return x / 2;\n}\n"
UNUSED = "__forceinline__ __device__ void unused(int x) {\n}\n"


def declaration(index: int) -> str:
    return f'extern "C" __global__ void __launch_bounds__(32) k{index}_kernel(float* __restrict__ a)'


def kernel(index: int, lines: int) -> str:
    body = "".join(f"  sum += twice(a[{line}]) * {line + index}.0f;\n" for line in range(lines))
    shared = "  extern __shared__ uint8_t buf_dyn_shmem[];\n  float sum = ((float*)buf_dyn_shmem)[threadIdx.x];\n"
    return f"{declaration(index)} {{\n{shared}{body}  a[threadIdx.x] = sum;\n}}\n\n"


def source() -> str:
    declarations = "".join(f"{declaration(index)};\n" for index in range(len(SIZES)))
    return HEAD + declarations + "".join(kernel(index, lines) for index, lines in enumerate(SIZES))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_parts, "PART_BYTES", 4096)
    monkeypatch.setattr(cuda_parts, "LEAST_BYTES", 4096)
    monkeypatch.setattr(cuda_parts, "_processors", lambda: 3)


def test_every_kernel_is_in_one_part() -> None:
    parts = split_kernels(source(), 3)
    assert len(parts) == 3 and all(part.startswith(HEAD) for part in parts)
    defined = [set(re.findall(r"(k\d)_kernel\(.*\{$", part, re.MULTILINE)) for part in parts]
    assert sorted(name for part in defined for name in part) == [f"k{index}" for index in range(len(SIZES))]
    assert {"k0"} in defined  # the largest has a part of its own
    assert split_kernels(source(), 1) == [source()]


def test_a_function_between_kernels_keeps_them_together() -> None:
    between = source() + "__device__ float helper(float x) {\n  return x;\n}\n" + kernel(9, 100)
    assert split_kernels(between, 3) == [between]


def with_functions() -> str:
    """The kernels of `source`, each with a function of its own, which calls one that all share."""
    calls = source()
    for index in range(len(SIZES)):
        begin = f"{declaration(index)} {{\n"
        calls = calls.replace(begin, f"{begin}  float own[1] = {{0}};\n  nonzeros_{index}(own);\n")
    functions = [own_function(index) for index in reversed(range(len(SIZES)))]
    return "".join([HALF, *functions, UNUSED]) + calls


def test_a_function_is_where_it_is_called() -> None:
    parts = split_kernels(with_functions(), 3)
    assert len(parts) == 3
    for part in parts:
        kernels = set(re.findall(r"k(\d)_kernel\(.*\{$", part, re.MULTILINE))
        assert kernels == set(re.findall(r"void nonzeros_(\d)\(", part))
        assert HALF in part and HEAD in part and UNUSED not in part
    # The functions count: the largest kernel and its function are a part.
    assert min(parts, key=lambda part: part.count("_kernel(")).count("nonzeros_0(own)") == 1


@needs_cuda
@pytest.mark.skipif(find_nvcc() is None, reason="no nvcc here")
def test_the_parts_make_one_binary(tmp_path: Path) -> None:
    binary = cuda_parts.compile_in_parts(str(find_nvcc()), with_functions(), ("sm_80", "sm_90"), ["-O3", "-w"], 300)
    assert binary is not None
    (fatbin,) = find_fatbins(binary)
    assert fatbin.sm_numbers == (80, 90)
    for index in range(len(SIZES)):
        assert binary.count(f".text.k{index}_kernel\0".encode()) >= 2  # of each arch


@needs_cuda
@pytest.mark.skipif(find_nvcc() is None, reason="no nvcc here")
def test_an_error_in_a_part_is_the_compilers() -> None:
    wrong = source().replace("* 199.0f", "* undefined_name")
    assert wrong != source()
    with pytest.raises(CompileError, match=r"nvcc refuses the code for sm_90: .*undefined_name"):
        cuda_compiler("nvcc").compile(wrong, ("sm_90",))
