"""Which functions are scheduled, which are left, and that a failing rule harms nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax, s_tir, te, tirx, topi
from tvm.s_tir.dlight import ScheduleRule
from tvm.target import Target

from tests.schedules.rules.programs import cpu_target, is_scheduled, prim_funcs, run_prim_func
from tvm_sparse.errors import CompileError
from tvm_sparse.schedules.cpu_target import vector_bits
from tvm_sparse.schedules.rules import apply_rules, rules_for, schedule_func
from tvm_sparse.schedules.rules.base import exact_lanes
from tvm_sparse.schedules.rules.lowering import lowers


def function() -> tirx.PrimFunc:
    x = te.placeholder((4, 33), name="x")
    return te.create_prim_func([x, topi.nn.relu(x)])


class Raises(ScheduleRule):
    def apply(self, func: tirx.PrimFunc, target: Target, tunable: bool) -> s_tir.Schedule | None:
        raise RuntimeError("a rule that meets what it does not expect")


class BindsOnACpu(ScheduleRule):
    """A schedule that does not lower for its target."""

    def apply(self, func: tirx.PrimFunc, target: Target, tunable: bool) -> s_tir.Schedule | None:
        sch = s_tir.Schedule(func)
        (block,) = sch.get_child_blocks(sch.get_sblock("root"))
        sch.compute_at(block, sch.get_loops(block)[0])
        return sch


@pytest.mark.parametrize("rule", [Raises(), BindsOnACpu()], ids=["raises", "bad"])
def test_a_failing_rule_leaves_the_function_serial_and_right(rule: Any) -> None:
    func, target = function(), cpu_target()
    result = schedule_func(func, target, [rule])
    assert result.same_as(func)
    array = np.random.default_rng(0).standard_normal((4, 33)).astype("float32")
    np.testing.assert_array_equal(run_prim_func(result, target, [array])[0], np.maximum(array, 0))


def test_cuda_refuses_what_no_rule_binds() -> None:
    with pytest.raises(CompileError, match="no CUDA schedule fits relu_7"):
        schedule_func(function(), Target({"kind": "cuda", "arch": "sm_90"}), [Raises()], "relu_7")


def test_scheduled_functions_are_not_touched() -> None:
    done = function().with_attr("tirx.is_scheduled", True)
    mod = tvm.IRModule({"done": done.with_attr("global_symbol", "done"), "todo": function()})
    result = prim_funcs(apply_rules(mod, cpu_target()))
    tvm.ir.assert_structural_equal(result["done"].body, done.body)
    assert is_scheduled(result["todo"])
    assert not is_scheduled(mod["todo"])  # the argument is not changed in place


def test_attributes_survive() -> None:
    func = function().without_attr("global_symbol").with_attr("op_pattern", 0)
    result = schedule_func(func, cpu_target(), rules_for(cpu_target()))
    assert int(result.attrs["op_pattern"]) == 0 and "global_symbol" not in result.attrs
    window = te.placeholder((1, 2, 8, 8), name="x")
    func = te.create_prim_func([window, topi.nn.pool2d(window, (3, 3), (1, 1), (1, 1), (1,) * 4, "max")])
    result = schedule_func(func.with_attr("global_symbol", "pool"), cpu_target(), rules_for(cpu_target()))
    assert result.attrs["global_symbol"] == "pool"


def test_a_whole_module_builds_and_runs() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 4, 9, 9), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            pooled = builder.emit(relax.op.nn.max_pool2d(x, (3, 3), (2, 2)))
            flat = builder.emit(relax.op.reshape(pooled, (1, 64)))
            out = builder.emit_output(relax.op.nn.softmax(flat))
        builder.emit_func_output(out)
    target = cpu_target()
    with target:
        mod = apply_rules(relax.transform.LegalizeOps()(builder.get()), target)
    machine = relax.VirtualMachine(tvm.compile(mod, target=target, relax_pipeline="default_build"), tvm.cpu())
    array = np.random.default_rng(0).standard_normal((1, 4, 9, 9)).astype("float32")
    assert abs(machine["main"](tvm.runtime.tensor(array)).numpy().sum() - 1) < 1e-5


@pytest.mark.parametrize(
    "cpu, bits", [("x86-64", 128), ("x86-64-v3", 256), ("haswell", 256), ("cascadelake", 512), ("znver4", 512)]
)
def test_vector_width(cpu: str, bits: int) -> None:
    assert vector_bits(Target({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": cpu})) == bits


@pytest.mark.parametrize("extent", range(1, 200))
def test_exact_lanes_divides(extent: int) -> None:
    lanes = exact_lanes(extent, 16)
    assert extent % lanes == 0 and (lanes == 16 or lanes <= 64)


def test_lowers_refuses_a_kernel_without_threads() -> None:
    cuda = Target({"kind": "cuda", "arch": "sm_90", "max_threads_per_block": 1024})
    assert lowers(function(), cpu_target())
    assert not lowers(function(), cuda)
