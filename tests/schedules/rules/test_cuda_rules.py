"""On CUDA every operator of the table is bound to threads, lowers, and (where a CUDA compiler is) becomes a cubin."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax, te, topi
from tvm.target import Target

from tests.schedules.rules.programs import is_scheduled, legalized, onnx_model, prim_funcs, scheduled
from tests.schedules.rules.test_semantics import CASES, reference
from tests.test_tvm_support import needs_cuda
from tvm_sparse.schedules.rules import schedule_func
from tvm_sparse.schedules.rules.cuda import BindEverything, WindowPerThread
from tvm_sparse.schedules.rules.lowering import lowers
from tvm_sparse.tvm_support.cuda_builds import cuda_build, cuda_target


@pytest.fixture(scope="module")
def target() -> Target:
    return cuda_target("sm_90")


@pytest.mark.parametrize("name", CASES)
def test_every_operator_is_bound(name: str, target: Any) -> None:
    shapes, nodes, constants = CASES[name]
    functions = prim_funcs(scheduled(onnx_model(shapes, nodes, **constants), target))
    assert functions
    for func in functions.values():
        assert is_scheduled(func) and lowers(func, target)


@pytest.mark.parametrize("name", CASES)
def test_the_last_rule_binds_every_operator(name: str, target: Any) -> None:
    shapes, nodes, constants = CASES[name]
    for func in prim_funcs(legalized(onnx_model(shapes, nodes, **constants), target)).values():
        assert is_scheduled(schedule_func(func, target, [BindEverything()]))


def test_windows_get_a_thread_an_output(target: Any) -> None:
    x = te.placeholder((1, 8, 14, 14), name="x")
    func = te.create_prim_func([x, topi.nn.pool2d(x, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), "max")])
    assert WindowPerThread().apply(func, target, False) is not None
    func = te.create_prim_func([x, topi.nn.global_pool(x, "avg")])
    assert WindowPerThread().apply(func, target, False) is None


@needs_cuda
@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_cubin(name: str) -> None:
    shapes, nodes, constants = CASES[name]
    with cuda_build("sm_90") as build:
        mod = scheduled(onnx_model(shapes, nodes, **constants), build.target)
        tvm.compile(mod, target=build.target, relax_pipeline="default_build")
    assert build.binaries or name == "reshape"


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_semantics_on_a_gpu(name: str) -> None:
    device = tvm.cuda(0)
    if not device.exist:
        pytest.skip("no CUDA device")
    shapes, nodes, constants = CASES[name]
    model = onnx_model(shapes, nodes, **constants)
    feeds = [np.random.default_rng(0).standard_normal(s).astype("float32") for s in shapes]
    arch = "sm_" + device.compute_version.replace(".", "")
    with cuda_build(arch) as build:
        executable = tvm.compile(scheduled(model, build.target), target=build.target, relax_pipeline="default_build")
    machine = relax.VirtualMachine(executable, device)
    result = machine["main"](*(tvm.runtime.tensor(feed, device) for feed in feeds)).numpy()
    np.testing.assert_allclose(result, reference(model, feeds), rtol=1e-4, atol=1e-5)
