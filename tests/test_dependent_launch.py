"""A kernel that begins early reads nothing before it has waited, and TVM is told to launch it so."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

import tvm_sparse
from tests.cases import Case
from tests.network.layer_cases import layer_cases
from tests.schedules.running import GPU, kernel
from tests.test_tvm_support import needs_cuda
from tests.waiting_kernels import EVERYTHING, checked_source
from tvm_sparse.cuda.paths import find_nvcc
from tvm_sparse.errors import CompileError
from tvm_sparse.tvm_support import cuda_compilers, dependent_launch
from tvm_sparse.tvm_support.dependent_launch import LATE_WAIT, read_after_waiting
from tvm_sparse.workload import ConvWorkload

SOURCE = """#include <cstdint>
extern "C" __global__ void __launch_bounds__(32) one_kernel(float* __restrict__ x_ptr, float* __restrict__ out_ptr);
extern "C" __global__ void __launch_bounds__(32) two_kernel(half* __restrict__ x_ptr, half* __restrict__ x_ptr_1);
extern "C" __global__ void __launch_bounds__(32) old_kernel(float* __restrict__ x_ptr, float* __restrict__ out_ptr) {
  out_ptr[((int)threadIdx.x)] = x_ptr[((int)threadIdx.x)];
}

extern "C" __global__ void __launch_bounds__(32) one_kernel(float* __restrict__ x_ptr, float* __restrict__ out_ptr) {
  wait_for_kernels_in_front();
  float y = x_ptr[((int)threadIdx.x)];
  *(float2*)(out_ptr + (((int)threadIdx.x) * 2)) = make_float2(y, x_ptr[0]);
}

extern "C" __global__ void __launch_bounds__(32) two_kernel(half* __restrict__ x_ptr, half* __restrict__ x_ptr_1) {
  wait_for_kernels_in_front();
  if (((int)threadIdx.x) < 3) {
    x_ptr_1[((int)threadIdx.x)] = x_ptr[((int)threadIdx.x)];
  }
}
"""


def signatures(source: str) -> list[str]:
    return re.findall(r"(\w+_kernel\(.*\))", source)


def test_only_weights_and_what_a_waiting_kernel_writes_are_restricted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dependent_launch, "_weights", {"two": {"x_ptr"}, "old": set()})
    changed = read_after_waiting(SOURCE)
    old = "old_kernel(float* __restrict__ x_ptr, float* __restrict__ out_ptr)"
    one = "one_kernel(float* x_ptr, float* __restrict__ out_ptr)"
    two = "two_kernel(half* __restrict__ x_ptr, half* __restrict__ x_ptr_1)"
    assert signatures(changed) == [one, two, old, one, two]
    plain = SOURCE.replace("  wait_for_kernels_in_front();\n", "")
    assert read_after_waiting(plain) == plain


def test_a_kernel_that_waits_late_is_declared_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dependent_launch, "_weights", {})
    late = SOURCE.replace("wait_for_kernels_in_front();", "begin_beside_kernels_in_front();")
    assert signatures(read_after_waiting(late)) == signatures(read_after_waiting(SOURCE))


def test_what_a_waiting_kernel_reads_is_no_constant_in_ptx() -> None:
    load = 'asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(y) : "l"(x_ptr));\n'
    source = SOURCE.replace("  float y = x_ptr", f"  float y;\n  {load}  y += x_ptr")
    assert "ld.global.f32 %0" in read_after_waiting(source) and ".nc" not in read_after_waiting(source)
    plain = source.replace("  wait_for_kernels_in_front();\n", "")
    assert read_after_waiting(plain) == plain


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes]:
    """The CUDA source of a small network that overlaps its kernels, and its library."""
    sources = []
    original = cuda_compilers._nvcc_fatbin

    def note(nvcc: str, source: str, archs: tuple[str, ...]) -> bytes:
        sources.append(source)
        return original(nvcc, source, archs)

    case = next(case for case in layer_cases() if case.name == "classifier")
    path: Path = tmp_path_factory.mktemp("overlap") / "net.so"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_compilers, "_nvcc_fatbin", note)
        tvm_sparse.compile(case.model, target="cuda", arch="sm_90", overlap=True).export(path)
    return sources[0], path.read_bytes()


@needs_cuda
@pytest.mark.skipif(find_nvcc() is None, reason="no nvcc here")
def test_no_kernel_reads_before_it_waits(compiled: tuple[str, bytes], tmp_path: Path) -> None:
    source, library = compiled
    (tmp_path / "kernels.cu").write_text(source)
    command = [str(find_nvcc()), "-ptx", "-arch=sm_90", "-O3", "-std=c++17", "-w", "kernels.cu"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    kernels = re.split(r"^\.visible \.entry ", (tmp_path / "kernels.ptx").read_text(), flags=re.MULTILINE)[1:]
    assert len(kernels) == len(re.findall(r"^extern .*\{$", source, re.MULTILINE)) > 3
    assert "float* x_ptr" in source and "__restrict__ x_ptr" not in source and "__restrict__ values_ptr" in source
    for code in kernels:
        before, after = code.split("griddepcontrol.wait;")
        # Weights may be read earlier; pooling and means have none.
        assert not re.search(r"\bst\S*\.global", before), code.split("(")[0]
        if re.match(r"(max_pool|mean)", code):
            assert not re.search(r"\bld\S*\.global", before) and "ld.global.nc" not in after
        assert re.search(r"\b(ld|cp\.async)\S*\.global", after)
    assert library.count(b"tirx.use_programtic_dependent_launch") == len(kernels)


@needs_cuda
def test_weights_alone_are_read_before_the_wait(compiled: tuple[str, bytes]) -> None:
    staged = 0
    for signature in dependent_launch._SIGNATURE.finditer(compiled[0]):
        if signature[3] == ";":
            continue
        body = compiled[0][signature.end() : compiled[0].find("\n}", signature.end())]
        before, _ = body.split("wait_for_kernels_in_front();")
        pointers = set(re.findall(r"(\w+_ptr)\b", signature[2]))
        early = pointers & set(re.findall(r"\w+", before))
        assert early <= dependent_launch._weights[dependent_launch._function_of(signature[1])], signature[1]
        staged += "values_ptr" in early
    assert staged


LATE = {
    "cuda_pixel": {},
    "cuda_pixel_nonzero": {"split_over": "blocks", "warps": 2, "channels": 3, "splits": 4, "blocks_per_warp": 2},
    "cuda_pattern": {},
    "cuda_jump": {},
    "cuda_dense": {},
    "cuda_row": {},
}


@pytest.mark.parametrize("name", LATE)
def test_a_late_kernel_waits_behind_its_last_store(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (2, 64, 1, 1, 24, 1, 1) if name == "cuda_row" else (1, 12, 9, 11, 24, 3, 3)
    padding = (0, 0, 0, 0) if name == "cuda_row" else (1, 1, 1, 1)
    case = Case(ConvWorkload(*shape, padding=padding, epilogue=EVERYTHING), 0.2, "channels", 3)
    built = kernel(name, case, GPU, **LATE[name])
    late = replace(built, func=built.func.with_attr(LATE_WAIT, 1))
    source = checked_source(late, case, monkeypatch)
    begun, ended = "begin_beside_kernels_in_front();", "end_behind_kernels_in_front();"
    bodies = re.findall(r"^extern [^\n]*\{\n(.*?)^\}", source, re.MULTILINE | re.DOTALL)
    assert len(bodies) == (2 if name == "cuda_pixel_nonzero" else 1)
    lines = [line.strip() for line in bodies[0].strip().split("\n")]
    assert lines[0] == begun and lines[-1] == ended
    # All threads come to the end, and nowhere else do they wait.
    assert "return" not in bodies[0] and "wait_for_kernels_in_front" not in bodies[0]
    for body in bodies[1:]:
        assert "wait_for_kernels_in_front();" in body and begun not in body and ended not in body
    helpers = dict(re.findall(r"^__forceinline__ \S+ void (\w+\(\)) \{\n(.*?)^\}", source, re.MULTILINE | re.DOTALL))
    assert re.findall(r"griddepcontrol\.(\w+)", helpers[begun[:-1]]) == ["launch_dependents"]
    assert re.findall(r"griddepcontrol\.(\w+)", helpers[ended[:-1]]) == ["wait"]


@needs_cuda
def test_older_archs_are_refused() -> None:
    case = next(case for case in layer_cases() if case.name == "classifier")
    with pytest.raises(CompileError, match="kernels that overlap need sm_90 or later: compile for sm_80 without"):
        tvm_sparse.compile(case.model, target="cuda", arch="sm_80,sm_90", overlap=True)


class _Overlaps(Exception):
    """Raised in place of building kernels that overlap."""


@pytest.mark.parametrize(("batch", "overlaps"), [(1, True), (2, False), ("1-2", False)])
def test_only_single_images_overlap_where_nobody_says(
    batch: int | str, overlaps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overlap(archs: object, weights: object) -> str:
        raise _Overlaps

    def build(*args: object, **options: object) -> None:
        raise InterruptedError

    monkeypatch.setattr("tvm_sparse.network.build.dependent_launch_pipeline", overlap)
    monkeypatch.setattr("tvm_sparse.network.build.tvm.compile", build)
    digits = Path(__file__).parents[1] / "examples" / "digits" / "digits_pruned95.onnx"
    with pytest.raises(_Overlaps if overlaps else InterruptedError):
        tvm_sparse.compile(digits, target="cuda", arch="sm_90", batch=batch, log=None, verify=False)
