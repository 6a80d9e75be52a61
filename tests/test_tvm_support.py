"""The work-arounds for TVM's faults: the release check, CUDA without a driver, machine code for several archs."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda_kernels import LENGTH, scaled_root
from tvm_sparse.cuda.fatbin import find_fatbins
from tvm_sparse.cuda.paths import DRIVER_SONAME, can_load, load_cudart
from tvm_sparse.errors import CompileError
from tvm_sparse.tvm_support import check_cuda_modules, cuda_build, cuda_compiler, cuda_target, enable_cuda, import_tvm


def _has_compiler(kind: str) -> bool:
    try:
        cuda_compiler(kind)
    except CompileError:
        return False
    return load_cudart() is not None


COMPILERS = [
    pytest.param(kind, marks=pytest.mark.skipif(not _has_compiler(kind), reason=f"no {kind} or no cudart here"))
    for kind in ("nvcc", "nvrtc")
]
needs_cuda = pytest.mark.skipif(not (_has_compiler("nvcc") or _has_compiler("nvrtc")), reason="no CUDA compiler here")
without_driver = pytest.mark.skipif(can_load(DRIVER_SONAME), reason="this machine has a GPU driver")


def _run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": str(root), **environment}
    return subprocess.run([sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("package", "version"),
    [("apache-tvm-ffi", "0.1.15.post2"), ("apache-tvm-ffi", "0.1.13"), ("apache-tvm", "0.26.0"), ("apache-tvm", None)],
)
def test_a_release_that_crashes_is_refused_with_the_pin(monkeypatch, package, version):
    installed = importlib.metadata.version

    def fake(name):
        if name != package:
            return installed(name)
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", fake)
    with pytest.raises(CompileError, match=r"apache-tvm-ffi==0\.1\.14\.post1"):
        import_tvm()


def test_tvm_uses_every_cpu_and_pins_nothing():
    run = _run(
        """
import os
before = os.sched_getaffinity(0)
from tvm_sparse.tvm_support import import_tvm
tvm = import_tvm()
print(int(tvm.get_global_func("runtime.NumThreads")()) == len(before), os.sched_getaffinity(0) == before)
"""
    )
    assert run.stdout == "True True\n", run.stderr


@pytest.mark.parametrize(
    ("archs", "arch", "shared_bytes"),
    [("sm_90", "sm_90", 232448), ("sm_90,sm_80", "sm_80", 166912), ("sm_80,sm_86", "sm_80", 101376)],
)
def test_the_target_suits_every_arch(archs, arch, shared_bytes):
    target = cuda_target(archs)
    assert (target.kind.name, target.host.kind.name) == ("cuda", "llvm")
    assert str(target.attrs["arch"]) == arch
    assert int(target.attrs["max_shared_memory_per_block"]) == shared_bytes


def test_unknown_archs_and_compilers_are_refused(monkeypatch):
    with pytest.raises(CompileError, match=r"sm_42.*known: .*sm_90"):
        cuda_target("sm_42")
    with pytest.raises(CompileError, match="gcc"):
        cuda_compiler("gcc")
    monkeypatch.setenv("TVM_CUDA_COMPILE_MODE", "clang")
    with pytest.raises(CompileError, match="clang"):
        cuda_compiler()


@pytest.mark.parametrize("kind", COMPILERS)
def test_one_build_holds_machine_code_for_every_arch(kind):
    import tvm
    import tvm_ffi

    before = tvm_ffi.get_global_func("tvm_callback_cuda_compile")
    with cuda_build("sm_90,sm_80", compiler=kind) as build:
        executable = tvm.compile(scaled_root(), target=build.target)
    check_cuda_modules(executable, build)
    (binary,) = build.binaries
    (fatbin,) = find_fatbins(binary)
    assert fatbin.sm_numbers == (80, 90) and fatbin.size_bytes == len(binary)
    assert binary.count(b"\x7fELF") == 2
    assert tvm_ffi.get_global_func("tvm_callback_cuda_compile").same_as(before)


@pytest.mark.parametrize("kind", COMPILERS)
def test_the_compilers_message_reaches_the_user(kind):
    with pytest.raises(CompileError, match=f"{kind} refuses the code for sm_80.*undefined_name"):
        cuda_compiler(kind).compile("__global__ void k(float* a) { *a = undefined_name; }", ("sm_80",))


@pytest.mark.skipif(not _has_compiler("nvcc"), reason="no nvcc here")
def test_a_failure_inside_a_build_is_one_line(monkeypatch):
    import tvm

    monkeypatch.setattr("tvm_sparse.tvm_support.cuda_compilers.MATH_FLAGS", ("--no-such-flag",))
    with (
        pytest.raises(CompileError, match=r"^nvcc refuses the code for sm_80: [^\n]*no-such-flag[^\n]*$"),
        cuda_build("sm_80", compiler="nvcc") as build,
    ):
        tvm.compile(scaled_root(), target=build.target)


@needs_cuda
@without_driver
def test_tvm_imported_first_still_generates_machine_code(tmp_path):
    """TVM without its CUDA runtime embeds source and is found out; the same process then enables CUDA."""
    run = _run(
        """
import tvm
from tests.cuda_kernels import scaled_root
from tvm_sparse.errors import CompileError
from tvm_sparse.tvm_support import CudaBuild, check_cuda_modules, cuda_build, cuda_compiler, cuda_target
target = cuda_target("sm_80")
with target:
    silent = tvm.compile(scaled_root(), target=target)
try:
    check_cuda_modules(silent, CudaBuild(target, ("sm_80",), cuda_compiler(), [b"another build's"]))
except CompileError as error:
    print(error)
with cuda_build("sm_80") as build:
    executable = tvm.compile(scaled_root(), target=build.target)
check_cuda_modules(executable, build)
print("compiled", tvm.cuda(0).exist)
""",
        XDG_CACHE_HOME=str(tmp_path),
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        "TVM embedded CUDA source in place of machine code for sm_80",
        "compiled False",
    ]
    assert [path.suffix for path in (tmp_path / "tvm-sparse").iterdir()] == [".so"]


@needs_cuda
@without_driver
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"PATH": "", "CC": ""}, "needs a C compiler"),
        ({"CC": "false"}, "C compiler 'false' cannot build the stub"),
        ({"CC": "/nowhere/cc"}, "C compiler '/nowhere/cc' does not run"),
    ],
)
def test_the_stub_of_the_driver_needs_a_working_c_compiler(tmp_path, environment, message):
    run = _run(
        "from tvm_sparse.tvm_support import enable_cuda\nenable_cuda()", XDG_CACHE_HOME=str(tmp_path), **environment
    )
    assert run.returncode != 0 and message in run.stderr.splitlines()[-1]
    assert list((tmp_path / "tvm-sparse").iterdir()) == []


def test_without_cudart_the_message_names_the_extra(monkeypatch):
    import tvm

    monkeypatch.setattr(tvm, "get_global_func", lambda *_, **__: None)
    monkeypatch.setattr("tvm_sparse.tvm_support.cuda_runtime.load_cudart", lambda: None)
    with pytest.raises(CompileError, match=r"libcudart\.so\.13.*tvm-sparse\[cuda\]"):
        enable_cuda()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", COMPILERS)
def test_the_fat_binary_runs_on_the_gpu(kind):
    import numpy as np
    import tvm

    with cuda_build("sm_80,sm_90,sm_100", compiler=kind) as build:
        executable = tvm.compile(scaled_root(), target=build.target)
    a = np.random.default_rng(0).random(LENGTH, dtype="float32")
    device = tvm.cuda(0)
    result = tvm.runtime.tensor(np.full(LENGTH, np.nan, "float32"), device)
    executable(tvm.runtime.tensor(a, device), result)
    np.testing.assert_allclose(result.numpy(), np.sqrt(a, dtype="float64") / (a.astype("float64") + 1), rtol=3e-7)
