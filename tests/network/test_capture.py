"""What of a CUDA network lies in its one graph, and that its outputs are those of the caller."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax, tirx

from tests.network.layer_cases import layer_cases
from tests.network.onnx_models import random_inputs
from tests.network.running import build, silent
from tests.test_tvm_support import needs_cuda
from tvm_sparse.network.build import lower_network
from tvm_sparse.network.capture import launches, outputs_as_parameters, weight_names
from tvm_sparse.network.onnx_import import import_onnx
from tvm_sparse.network.workspace import lift_workspaces
from tvm_sparse.oracle import relative_error
from tvm_sparse.schedules import template
from tvm_sparse.targets import make_target
from tvm_sparse.tvm_support import cuda_build, cuda_target, pass_config

CASES = {case.name: case for case in layer_cases()}
GRAPH = {"relax.backend.use_cuda_graph": True}


@cache
def lowered(name: str) -> tvm.IRModule:
    """The case as CUDA code is generated for it, up to TVM's last pass over Relax functions."""
    target = cuda_target("sm_90")
    module, _ = lower_network(import_onnx(CASES[name].model), target, "auto", silent)
    with target, pass_config(GRAPH):
        module = lift_workspaces(outputs_as_parameters(module, target))
        return relax.get_pipeline("default_build")(module)


def calls_outside(module: tvm.IRModule) -> list[str]:
    """Names of the kernels that "main" calls itself, in order, without the numbers that make them unique."""
    names = {var.name_hint for var, function in module.functions_items() if isinstance(function, tirx.PrimFunc)}
    lines = re.findall(r"^\s+(\w+)\(", module["main"].script(), re.MULTILINE)
    return [re.sub(r"(?<=[a-z])\d+$", "", line) for line in lines if line in names]


@pytest.mark.parametrize(
    ("name", "captures", "outside", "copies"),
    [
        ("classifier", 1, 2, []),
        ("line block", 1, 2, []),
        ("residual, then bias", 1, 2, []),
        ("chain of residuals", 1, 2, ["copy_input"]),  # two layers read the input
        ("the later has an activation", 1, 2, ["copy_input"]),
        ("squeeze and excite", 1, 2, []),
        ("computed filter", 1, 3, ["copy_input"]),  # two inputs, one of them read by one kernel
        ("its sum is also an output", 0, 3, ["copy_output"]),
        ("nothing is computed", 0, 1, ["copy_output"]),
        ("plain", 0, 1, []),
    ],
)
def test_all_but_the_edges_is_in_one_capture(name: str, captures: int, outside: int, copies: list[str]) -> None:
    module = lowered(name)
    assert module["main"].script().count("run_or_capture") == captures
    calls = calls_outside(module)
    assert len(calls) == outside and [call for call in calls if call.startswith("copy")] == copies
    assert "alloc_storage" not in module["main"].script()  # what is allocated is allocated once


@needs_cuda
def test_the_built_executable_captures_once() -> None:
    target = make_target("cuda", arch="sm_90")
    for cuda_graph in (True, False):
        with cuda_build("sm_90", target=target):
            built = build(import_onnx(CASES["classifier"].model), "auto", target, cuda_graph)
        text = built.executable.as_text()
        assert text.count("call  vm.builtin.cuda_graph.run_or_capture") == cuda_graph


SOME = (
    "classifier",
    "line block",
    "chain of residuals",
    "two inputs and outputs",
    "also an output",
    "its sum is also an output",
    "an input is an output",
    "nothing is computed",
    "an unused input",
    "nothing but zeros",
    "computed filter",
)


@pytest.mark.parametrize("name", SOME)
def test_outputs_are_written_where_the_caller_wants_them(name: str) -> None:
    """On the CPU, where the same passes apply."""
    model, target = import_onnx(CASES[name].model), make_target("llvm", threads=2)
    inputs = random_inputs(model)
    module, _ = lower_network(model, target, "auto", silent)
    with target:
        module = lift_workspaces(outputs_as_parameters(module, target))
        executable = tvm.compile(module, target=target, relax_pipeline="default_build")
    outputs = [tvm.runtime.tensor(np.full(spec.shape, np.nan, spec.dtype)) for spec in model.outputs]
    given = [tvm.runtime.tensor(np.array(inputs[spec.name])) for spec in model.inputs]
    relax.VirtualMachine(executable, tvm.cpu())["main"](*given, *outputs)
    assert model.reference is not None
    for ours, theirs in zip(outputs, model.reference(inputs), strict=True):
        assert relative_error(ours.numpy(), theirs) <= 1e-5
    assert all(
        np.array_equal(tensor.numpy(), inputs[spec.name]) for tensor, spec in zip(given, model.inputs, strict=True)
    )


def test_weights_are_what_no_kernel_writes() -> None:
    target = cuda_target("sm_90")
    module, _ = lower_network(import_onnx(CASES["chain of residuals"].model), target, "auto", silent)
    with target, pass_config(GRAPH):
        module = lift_workspaces(outputs_as_parameters(module, target))
    found = weight_names(module)
    direct = [names for function, names in found.items() if function.startswith("direct")]
    assert any(direct) and not any(names & {"x", "out", "residual"} for names in direct)
    assert found["copy_input"] == set()


def test_a_reshape_between_kernels_is_a_view() -> None:
    functions = [one for one in lowered("chain of residuals").functions.values() if isinstance(one, relax.Function)]
    text = "".join(function.script() for function in functions)
    assert "vm.builtin.reshape" in text and not re.search(r"^\s+reshape\d*\(", text, re.MULTILINE)


def split_kernel() -> Any:
    """A function of two kernels that share partial sums."""
    from tests.cases import Case, seeded

    target = cuda_target("sm_90")
    case: Case = next(
        case for case in seeded(0, 50) if template("cuda_pixel_nonzero").applies(case.workload, target) is None
    )
    chosen = template("cuda_pixel_nonzero")
    knobs = {**chosen.default(case.workload, case.density, target), "split_over": "blocks"}
    return case, chosen.kernel(case.workload, case.weight(), target, knobs)


def test_the_memory_between_two_kernels_is_the_networks() -> None:
    case, kernel = split_kernel()
    assert launches(kernel.func) == 2
    workload = case.workload
    x = relax.Var("x", relax.TensorType((workload.n, workload.c, workload.h, workload.w), workload.dtype))
    out = relax.TensorType((workload.n, workload.k, workload.p, workload.q), workload.dtype)
    builder = relax.BlockBuilder()
    others = [tvm.runtime.tensor(array) for array in kernel.constants.arrays]
    extra = [tvm.runtime.tensor(array) for name, array in case.inputs().items() if name != "x"]
    with builder.function("main", [x]):
        function = builder.add_func(kernel.func.without_attr("global_symbol"), "split")
        with builder.dataflow():
            args = [x, *map(relax.const, others + extra)]
            y = builder.emit_output(relax.call_tir(function, args, out))
        builder.emit_func_output(y)
    target = cuda_target("sm_90")
    with target:
        module = lift_workspaces(outputs_as_parameters(builder.get(), target))
    lifted = module["split"]
    assert len(lifted.params) == len(kernel.func.params) + 1
    assert [buffer.scope() for buffer in lifted.body.block.alloc_buffers].count("global") == 0
    with target, pass_config({**GRAPH, "tirx.use_async_copy": True}):
        main = relax.get_pipeline("default_build")(module)["main"].script()
    assert main.count("get_cached_alloc") == 1  # the workspace; input and output are the caller's
