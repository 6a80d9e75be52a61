"""Writing a library: one file, the old one kept on every failure, machine code that NVIDIA's tools can list."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess

import numpy as np
import pytest

from tests.deploy.conftest import INPUTS, cuda_network
from tests.test_tvm_support import needs_cuda, without_driver
from tvm_sparse.cuda.archs import sm_number
from tvm_sparse.cuda.fatbin import find_fatbins
from tvm_sparse.deploy import TensorSpec, export_library, load, make_metadata, read_metadata
from tvm_sparse.errors import CompileError, LibraryError, OutputError
from tvm_sparse.tvm_support import cuda_build

ARCHS = ("sm_80", "sm_90")
VECTOR = (TensorSpec("x", (1000,), "float32"),)


def test_the_report_and_the_metadata_fit_the_file(compiled, library):
    assert read_metadata(library) == type(compiled.metadata).from_json(compiled.metadata.to_json())
    report = export_library(compiled.executable, compiled.metadata, library.with_name("again.so"))
    assert report.library_bytes == report.path.stat().st_size
    assert (report.dense_bytes, report.sparse_bytes) == (96, 28)


def test_metadata_name_this_machines_cpu(compiled):
    import tvm

    assert compiled.metadata.mcpu == str(tvm.target.codegen.llvm_get_system_cpu())
    assert compiled.metadata.triple.startswith(os.uname().machine)
    assert compiled.metadata.versions["apache-tvm"] == "0.27.0.post1"
    assert compiled.metadata.inputs == INPUTS


@pytest.mark.parametrize("name", ["net", "net.tar", "net.wasm", "a b.so"])
def test_any_file_name_will_do(compiled, tmp_path, name):
    export_library(compiled.executable, compiled.metadata, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert load(tmp_path / name).inputs == INPUTS


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"PATH": "", "CXX": "", "CC": ""}, "needs a C.. compiler"),
        ({"CXX": "/nowhere/g++"}, "'/nowhere/g..' does not run: No such file"),
        ({"CXX": "false"}, "'false' cannot link"),
    ],
)
def test_without_a_working_compiler_the_old_file_stays(compiled, tmp_path, monkeypatch, variables, message):
    path = tmp_path / "net.so"
    path.write_bytes(b"old")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CompileError, match=message):
        export_library(compiled.executable, compiled.metadata, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.so"] and path.read_bytes() == b"old"


def test_a_full_disk_leaves_the_old_file(compiled, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "net.so"
    path.write_bytes(b"old")
    monkeypatch.setattr("tvm_sparse.deploy.library.append_trailer", fail)
    with pytest.raises(OutputError, match=r"net\.so: .*No space left on device"):
        export_library(compiled.executable, compiled.metadata, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.so"] and path.read_bytes() == b"old"


def test_a_folder_that_is_not_there_is_named(compiled, tmp_path):
    with pytest.raises(OutputError, match=r"nowhere/net\.so: cannot write"):
        export_library(compiled.executable, compiled.metadata, tmp_path / "nowhere" / "net.so")


@pytest.fixture(scope="module")
def cuda_library(tmp_path_factory):
    path = tmp_path_factory.mktemp("cuda") / "net.so"
    with cuda_build(ARCHS) as build:
        executable = cuda_network(build.target)
    metadata = make_metadata(model="vector", inputs=VECTOR, outputs=VECTOR, target=build.target, archs=build.archs)
    export_library(executable, metadata, path)
    return path


@needs_cuda
def test_a_cuda_library_holds_machine_code_for_every_arch(cuda_library):
    metadata = read_metadata(cuda_library)
    assert (metadata.target, metadata.archs) == ("cuda", ARCHS)
    assert "avx2" not in metadata.cpu_features
    dump = shutil.which("readelf")
    if dump is not None:
        sections = subprocess.run([dump, "-S", "-W", cuda_library], capture_output=True, text=True, check=True).stdout
        assert ".nv_fatbin" in sections and ".rodata" in sections and ".text" in sections
    content = cuda_library.read_bytes()
    (fatbin,) = find_fatbins(content)
    assert fatbin.sm_numbers == tuple(map(sm_number, ARCHS)) and b"__global__" not in content


@needs_cuda
@pytest.mark.skipif(shutil.which("cuobjdump") is None, reason="no cuobjdump here")
def test_cuobjdump_lists_every_arch(cuda_library):
    run = subprocess.run(["cuobjdump", "--list-elf", cuda_library], capture_output=True, text=True, check=True)
    assert all(f".{arch}.cubin" in run.stdout for arch in ARCHS)
    assert len(run.stdout.splitlines()) == len(ARCHS)


@needs_cuda
@without_driver
def test_a_cuda_library_says_what_this_machine_lacks(cuda_library):
    with pytest.raises(LibraryError, match=r"net\.so: runs on NVIDIA GPUs \(sm_80, sm_90\) and no working driver"):
        load(cuda_library)


@needs_cuda
def test_missing_machine_code_is_not_exported(tmp_path):
    with cuda_build("sm_80") as build:
        executable = cuda_network(build.target)
    metadata = make_metadata(model="vector", inputs=VECTOR, outputs=VECTOR, target=build.target, archs=ARCHS)
    with pytest.raises(CompileError, match="no machine code for sm_90"):
        export_library(executable, metadata, tmp_path / "net.so")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("source", ["numpy", "torch cpu", "torch cuda"])
def test_a_cuda_library_runs_on_the_gpu(cuda_library, source):
    x = np.random.default_rng(0).random(1000, dtype="float32")
    expected = np.sqrt(x, dtype="float64") / (x.astype("float64") + 1)
    network = load(cuda_library)
    if source == "numpy":
        result = network(x)
        assert isinstance(result, np.ndarray)
    else:
        torch = pytest.importorskip("torch")
        result = network(torch.from_numpy(x).to(source.split()[1]))
        assert result.device.type == source.split()[1]
        result = result.cpu().numpy()
    np.testing.assert_allclose(result, expected, rtol=3e-7)
