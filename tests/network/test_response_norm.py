"""Local response normalisation becomes one operator, and nothing else does."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from onnx import helper
from tvm import relax

from tests.schedules.rules.programs import cpu_target, onnx_model
from tests.schedules.rules.test_semantics import reference
from tvm_sparse.network.cleanup import clean_up
from tvm_sparse.network.imported import bindings_of, operator
from tvm_sparse.network.response_norm import fuse_response_norms


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
