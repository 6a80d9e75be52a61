"""Loading and running a library: every kind of array, every wrong input, every machine it does not fit."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.deploy.conftest import compile_two_outputs
from tvm_sparse.deploy import export_library, load, requirements
from tvm_sparse.deploy.machine import usable_cpus
from tvm_sparse.deploy.metadata import Metadata
from tvm_sparse.errors import InputError, LibraryError

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(11)
X = RNG.standard_normal((4, 8)).astype("float32")
BIAS = RNG.standard_normal(3).astype("float32")


@pytest.fixture(scope="module")
def network(library):
    return load(library)


def _check(results, compiled, x=X, bias=BIAS):
    assert isinstance(results, tuple) and len(results) == 2
    for result, expected in zip(results, compiled.expected(x, bias), strict=True):
        np.testing.assert_allclose(np.asarray(result), expected, rtol=1e-5, atol=1e-6)


def _misaligned(array, offset_bytes):
    raw = np.empty(array.nbytes + 128, np.uint8)
    start = -raw.ctypes.data % 64 + offset_bytes
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def _readonly(array):
    copy = array.copy()
    copy.flags.writeable = False
    return copy


LAYOUTS = {
    "plain": lambda array: array,
    "column major": np.asfortranarray,
    "strided": lambda array: np.repeat(array, 2, axis=-1)[..., ::2],
    "reversed": lambda array: array[..., ::-1].copy()[..., ::-1],
    "read-only": _readonly,
    "one element off": lambda array: _misaligned(array, array.itemsize),
    "half a line off": lambda array: _misaligned(array, 32),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_numpy_in_numpy_out(network, compiled, layout):
    x, bias = LAYOUTS[layout](X), LAYOUTS[layout](BIAS)
    results = network(x, bias)
    assert all(isinstance(result, np.ndarray) and result.flags.writeable for result in results)
    _check(results, compiled)


def test_inputs_by_name(network, compiled):
    _check(network(**{"bias": BIAS, "input.1": X}), compiled)
    _check(network(X, bias=BIAS), compiled)
    results = network.run({"bias": BIAS, "input.1": X})
    assert list(results) == ["relu", "twice"]
    _check(tuple(results.values()), compiled)


def test_outputs_of_two_calls_are_their_own(network, compiled):
    first = network(X, BIAS)
    network(-X, -BIAS)
    _check(first, compiled)


@pytest.mark.parametrize("layout", ["plain", "transposed", "sliced", "needs gradient"])
def test_torch_in_torch_out(network, compiled, layout):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(X.copy())
    if layout == "transposed":
        x = torch.from_numpy(X.T.copy()).T
    elif layout == "sliced":
        x = torch.cat([torch.zeros(1), x.flatten()])[1:].reshape(4, 8)  # starts 4 bytes off
    elif layout == "needs gradient":
        x.requires_grad_()
    results = network(x, BIAS)
    assert all(isinstance(result, torch.Tensor) for result in results)
    _check(results, compiled)


def test_dlpack_in_dlpack_out(network, compiled):
    import tvm_ffi

    class Producer:
        """Only the DLPack interface."""

        def __init__(self, array):
            self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__

    results = network(Producer(_misaligned(X, 4)), BIAS)
    assert all(isinstance(result, tvm_ffi.Tensor) for result in results)
    _check(tuple(np.from_dlpack(result) for result in results), compiled)


def test_tvm_tensors(network, compiled):
    import tvm

    results = network(tvm.runtime.tensor(X), tvm.runtime.tensor(BIAS))
    _check(tuple(result.numpy() for result in results), compiled)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(LAYOUTS)))
def test_any_values_in_any_layout(network, compiled, seed, layout):
    inputs = network.random_inputs(seed)
    _check(network(*(LAYOUTS[layout](array) for array in inputs.values())), compiled, *inputs.values())


@pytest.mark.parametrize(
    ("positional", "named", "message"),
    [
        ((X,), {}, r"input 'bias' is missing; the network takes input\.1 float32 \(4, 8\), bias float32 \(3\)"),
        ((X, BIAS, BIAS), {}, r"3 inputs given, the network takes 2: input\.1"),
        ((X, BIAS), {"bias": BIAS}, "'bias' was given twice"),
        ((X,), {"baas": BIAS}, r"no input 'baas'; it takes input\.1"),
        ((X.T, BIAS), {}, r"'input\.1' has shape \(8, 4\), expected \(4, 8\)"),
        ((X[None], BIAS), {}, r"'input\.1' has shape \(1, 4, 8\)"),
        ((X, BIAS[0]), {}, r"'bias' has shape \(\), expected \(3\)"),
        ((X.astype("float64"), BIAS), {}, r"'input\.1' has dtype float64, expected float32"),
        ((X.astype(">f4"), BIAS), {}, r"'input\.1' has dtype >f4, expected float32"),
        ((X, BIAS.astype("int32")), {}, "'bias' has dtype int32"),
        ((X, np.array(["a", "b", "c"])), {}, "'bias' has dtype <U1"),
        ((X, BIAS.astype(object)), {}, "'bias' has dtype object"),
        ((X, [1.0, 2.0, 3.0]), {}, "'bias': list is no numpy array"),
        ((X, None), {}, "'bias': NoneType is no numpy array"),
    ],
)
def test_wrong_inputs_are_named(network, positional, named, message):
    with pytest.raises(InputError, match=message):
        network(*positional, **named)


def test_wrong_torch_inputs_are_named(network):
    torch = pytest.importorskip("torch")
    with pytest.raises(InputError, match=r"'input\.1' has dtype float64"):
        network(torch.zeros(4, 8, dtype=torch.float64), BIAS)
    with pytest.raises(InputError, match=r"'input\.1' has shape \(8, 4\)"):
        network(torch.zeros(8, 4), BIAS)
    with pytest.raises(InputError, match=r"'input\.1': cannot be read through DLPack"):
        network(torch.zeros(4, 8).to_sparse(), BIAS)


def test_what_the_network_says_about_itself(network, compiled, library):
    assert network.metadata == Metadata.from_json(compiled.metadata.to_json())
    assert [spec.name for spec in network.inputs] == ["input.1", "bias"]
    assert [spec.shape for spec in network.outputs] == [(4, 3), (3,)]
    assert network.report() == ({"name": "layer", "nnz": 7},)
    assert (network.device, network.path) == ("cpu", library)


def test_a_replaced_library_is_loaded_anew(compiled, tmp_path):
    path = tmp_path / "net.so"
    other = compile_two_outputs(np.full((8, 3), 2, "float32"))
    networks = []
    for one in (compiled, other, compiled):
        export_library(one.executable, one.metadata, path)
        networks.append((load(path), one))
    for network, one in networks:
        _check(network(X, BIAS), one)


def test_calls_from_many_threads_agree(network, compiled):
    def call(seed):
        inputs = network.random_inputs(seed)
        for _ in range(50):
            _check(network(*inputs.values()), compiled, *inputs.values())

    with ThreadPoolExecutor(4) as callers:
        list(callers.map(call, range(4)))


@pytest.mark.parametrize("threads", [0, -1, 10_000])
def test_impossible_thread_counts_are_refused(library, threads):
    with pytest.raises(InputError, match=f"{threads} threads: this process may use 1 to {len(usable_cpus())}"):
        load(library, threads=threads)


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda", "compiled for cpu"), ("gpu", "must be cpu, cuda or cuda:N"), ("cuda:-1", "must be cpu, cuda or cuda:N")],
)
def test_impossible_devices_are_refused(library, device, message):
    with pytest.raises(InputError, match=message):
        load(library, device=device)


def test_a_cpu_without_the_features_is_refused(library, monkeypatch):
    monkeypatch.setattr(requirements, "cpu_features", lambda: frozenset({"sse4_1"}))
    with pytest.raises(LibraryError, match=r"net\.so: was compiled for .*lacks .*: compile it for this machine"):
        load(library)


def test_another_kind_of_cpu_is_refused(compiled, tmp_path):
    path = tmp_path / "net.so"
    export_library(compiled.executable, dataclasses.replace(compiled.metadata, triple="riscv64-linux-gnu"), path)
    with pytest.raises(LibraryError, match=r"net\.so: was compiled for riscv64 CPUs"):
        load(path)


@pytest.mark.parametrize(
    ("archs", "capabilities", "index", "error", "message"),
    [
        (("sm_90",), None, 0, LibraryError, r"net\.so: .*no working driver"),
        (("sm_90",), [], 0, LibraryError, "driver shows none"),
        (("sm_90",), [(9, 0)], 1, InputError, "cuda:1 does not exist, there are 1 GPUs"),
        (("sm_90",), [(8, 0)], 0, LibraryError, "holds code for sm_90, GPU 0 is sm_80: compile it with --arch sm_80"),
        (("sm_80", "sm_86"), [(9, 0)], 0, LibraryError, "holds code for sm_80, sm_86, GPU 0 is sm_90"),
        (("sm_80",), [(8, 9)], 0, None, ""),
        (("sm_80", "sm_90"), [(8, 0), (9, 0)], 1, None, ""),
    ],
)
def test_the_gpu_must_fit(compiled, monkeypatch, archs, capabilities, index, error, message):
    metadata = dataclasses.replace(compiled.metadata, target="cuda", archs=archs)
    monkeypatch.setattr(requirements, "device_capabilities", lambda: capabilities)
    if error is None:
        requirements._check_gpu(Path("net.so"), metadata, index)
        return
    with pytest.raises(error, match=message):
        requirements._check_gpu(Path("net.so"), metadata, index)


def _run(code, *arguments, **variables):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


RUN_AND_LOOK = """
import sys
from tvm_sparse.deploy import load
network = load(sys.argv[1])
print(sorted(network.run(network.random_inputs(0))))
maps = open("/proc/self/maps").read()
runtimes = {line.split()[-1] for line in maps.splitlines() if "libtvm_runtime.so" in line}
print("libtvm_compiler" in maps, sorted(runtimes))
print([name for name in ("tvm", "tvm_sparse.tvm_support", "tvm_sparse.network") if name in sys.modules])
"""


def test_neither_the_compiler_nor_tvm_is_loaded(library):
    import tvm

    lines = _run(RUN_AND_LOOK, library)
    runtime_path = Path(tvm.__file__).parent / "lib" / "libtvm_runtime.so"
    assert lines == ["['relu', 'twice']", f"False ['{runtime_path}']", "[]"]


@pytest.mark.parametrize("place", ["beside the library", "TVM_SPARSE_RUNTIME_DIR"])
def test_apache_tvm_need_not_be_installed(library, tmp_path, place):
    """Only the libraries, copied: `find_spec` is told that there is no tvm."""
    import tvm

    (tmp_path / "here").mkdir()
    (tmp_path / "net").mkdir()
    runtime_dir = tmp_path / ("net" if place.startswith("beside") else "here")
    shutil.copy(Path(tvm.__file__).parent / "lib" / "libtvm_runtime.so", runtime_dir)
    shutil.copy(library, tmp_path / "net")
    hide = """
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "tvm" else find_spec(name, *rest)
"""
    variables = {} if place.startswith("beside") else {"TVM_SPARSE_RUNTIME_DIR": str(runtime_dir)}
    lines = _run(hide + RUN_AND_LOOK, tmp_path / "net" / "net.so", **variables)
    assert lines[1] == f"False ['{runtime_dir / 'libtvm_runtime.so'}']"
    (runtime_dir / "libtvm_runtime.so").unlink()
    code = f"""
{hide}
from tvm_sparse.deploy import load
from tvm_sparse.errors import LibraryError
try:
    load({str(tmp_path / "net" / "net.so")!r})
except LibraryError as error:
    print(error)
"""
    (message,) = _run(code, **variables)
    assert "net.so: needs TVM's libtvm_runtime.so, not found in" in message and str(runtime_dir) in message


@pytest.mark.parametrize("first", ["tvm", "tvm_sparse.deploy"])
def test_tvm_may_be_imported_before_or_after(library, first):
    code = """
import sys
if sys.argv[2] == "tvm":
    import tvm
from tvm_sparse.deploy import load
network = load(sys.argv[1])
before = network.run(network.random_inputs(0))
import tvm
from tvm import te
a = te.placeholder((4,), name="a")
double = tvm.compile(te.create_prim_func([a, te.compute((4,), lambda i: a[i] * 2, name="b")]), target="llvm")
import numpy as np
result = tvm.runtime.tensor(np.full(4, np.nan, "float32"))
double(tvm.runtime.tensor(np.arange(4, dtype="float32")), result)
after = network.run(network.random_inputs(0))
print(result.numpy().tolist(), all((before[name] == after[name]).all() for name in before))
"""
    assert _run(code, library, first) == ["[0.0, 2.0, 4.0, 6.0] True"]


@pytest.mark.skipif(len(usable_cpus()) < 2, reason="one CPU only")
def test_threads_are_what_was_asked_for_and_nothing_is_pinned(library):
    code = """
import os, sys, threading
import tvm_ffi
from tests.processes import cpus_of_threads
from tvm_sparse.deploy import load
count = lambda: tvm_ffi.get_global_func("runtime.NumThreads")()
one, two = load(sys.argv[1], threads=1), load(sys.argv[1], threads=2)
seen = []
def call():
    for network in (one, two, one):
        network.run(network.random_inputs(0))
        seen.append(count())
call()
thread = threading.Thread(target=call)
thread.start()
thread.join()
own = os.sched_getaffinity(os.getppid())
print(one.threads, two.threads, seen, all(cpus == own for cpus in cpus_of_threads()))
"""
    assert _run(code, library) == ["1 2 [1, 2, 1, 1, 2, 1] True"]


@pytest.mark.skipif(len(usable_cpus()) < 2, reason="one CPU only")
def test_a_pool_that_is_too_small_is_not_passed_over_in_silence(library):
    code = """
import sys
import os
import tvm
tvm.get_global_func("runtime.NumThreads")()  # starts this thread's pool
del os.environ["TVM_NUM_THREADS"]
from tvm_sparse.deploy import load
from tvm_sparse.errors import InputError
try:
    load(sys.argv[1], threads=2)
except InputError as error:
    print(error)
print(load(sys.argv[1]).threads)
"""
    lines = _run(code, library, TVM_NUM_THREADS="1")
    assert lines == ["2 threads: TVM already started 1 in this process: set TVM_NUM_THREADS=2 before it", "1"]
