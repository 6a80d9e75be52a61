"""Local response normalisation becomes one operator, and nothing else does."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tvm
from onnx import helper
from tvm import relax, tirx

from tests.cuda_on_cpu import run
from tests.schedules.rules.programs import cpu_target, onnx_model
from tests.schedules.rules.test_semantics import reference
from tests.schedules.running import GPU
from tvm_sparse.network.cleanup import clean_up
from tvm_sparse.network.imported import bindings_of, operator
from tvm_sparse.network.response_norm import fuse_response_norms
from tvm_sparse.schedules.rules import cuda_pooled_norm, schedule_func


def imported(**attributes: float) -> tuple[object, tvm.IRModule]:
    from tvm.relax.frontend.onnx import from_onnx

    node = helper.make_node("LRN", ["x0"], ["y"], **attributes)
    model = onnx_model([[2, 6, 5, 4]], [node])
    return model, clean_up(from_onnx(model))


@pytest.mark.parametrize("attributes", [{"size": 5, "alpha": 5e-2, "beta": 0.75, "bias": 2.0}, {"size": 3}])
def test_one_call_with_the_same_result(attributes: dict[str, float]) -> None:
    model, before = imported(**attributes)
    after = fuse_response_norms(before)
    assert [operator(value) for _, value in bindings_of(after["main"])] == ["relax.call_tir"]
    array = np.random.default_rng(0).standard_normal((2, 6, 5, 4)).astype(np.float32)
    machine = relax.VirtualMachine(tvm.compile(after, target=cpu_target()), tvm.cpu())
    result = machine["main"](tvm.runtime.tensor(array)).numpy()
    np.testing.assert_allclose(result, reference(model, [array]), rtol=1e-5)


POOLS = {
    "plain": {"kernel_shape": [3, 3], "strides": [2, 2]},
    "padded": {"kernel_shape": [3, 3], "strides": [2, 1], "pads": [1, 1, 1, 1]},
    "beyond the edge": {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1},
}


def with_pool(shape: list[int], **attributes: object) -> tuple[object, tvm.IRModule]:
    from tvm.relax.frontend.onnx import from_onnx

    norm = helper.make_node("LRN", ["x0"], ["norm"], size=5, alpha=5e-2, beta=0.75, bias=2.0)
    model = onnx_model([shape], [norm, helper.make_node("MaxPool", ["norm"], ["y"], **attributes)])
    return model, clean_up(from_onnx(model))


@pytest.mark.parametrize("pool", POOLS)
def test_a_pool_behind_it_joins(pool: str) -> None:
    model, before = with_pool([2, 6, 8, 8], **POOLS[pool])
    after = fuse_response_norms(before)
    assert [operator(value) for _, value in bindings_of(after["main"])] == ["relax.call_tir"]
    array = np.random.default_rng(0).standard_normal((2, 6, 8, 8)).astype(np.float32)
    machine = relax.VirtualMachine(tvm.compile(after, target=cpu_target()), tvm.cpu())
    np.testing.assert_allclose(machine["main"](tvm.runtime.tensor(array)).numpy(), reference(model, [array]), rtol=1e-5)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
@pytest.mark.parametrize("enough", [1, cuda_pooled_norm.ENOUGH_THREADS], ids=["several channels", "one channel"])
@pytest.mark.parametrize("pool", POOLS)
def test_one_kernel_on_a_gpu(pool: str, enough: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_pooled_norm, "ENOUGH_THREADS", enough)
    model, before = with_pool([2, 6, 7, 8], **POOLS[pool])
    func = next(f for _, f in fuse_response_norms(before).functions_items() if isinstance(f, tirx.PrimFunc))
    kernel = schedule_func(func, GPU, [cuda_pooled_norm.PooledNorm()]).with_attr("global_symbol", "main")
    array = np.random.default_rng(0).standard_normal((2, 6, 7, 8)).astype(np.float32)
    expected = reference(model, [array])
    poisoned = np.full(expected.shape, np.nan, np.float32)
    found = run(kernel, GPU, {kernel.params[0].name: array, "out": poisoned}, shared_bytes=0, folder=tmp_path)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_another_quotient_stays() -> None:
    _, before = imported(size=5)
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 4, 3, 3), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            power = builder.emit(relax.op.power(relax.op.add(x, relax.const(2.0)), relax.const(0.75)))
            y = builder.emit_output(relax.op.divide(x, power))
        builder.emit_func_output(y)
    module = builder.get()
    tvm.ir.assert_structural_equal(fuse_response_norms(module)["main"], module["main"])
    assert len(bindings_of(before["main"])) == 8
