"""TVM's builtins for CUDA graphs, where no runtime for CUDA can be loaded, and a network that calls them on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tvm_ffi

from tvm_sparse.deploy import TensorSpec, export_library, make_metadata
from tvm_sparse.tvm_support import import_tvm

SHAPE = (3, 5)
SPEC = TensorSpec("x", SHAPE, "float32")
OUTPUTS = (TensorSpec("y", SHAPE, "float32"),)


@contextmanager
def graph_builtins() -> Iterator[list[int]]:
    """While they are registered; the list gets the number of every graph that is launched."""
    launched: list[int] = []
    allocated: dict[Any, Any] = {}
    invoke = tvm_ffi.get_global_func("vm.builtin.invoke_closure")

    def run_or_capture(machine: Any, function: Any, arguments: Any, number: int) -> Any:
        launched.append(number)
        return invoke(machine, function, *arguments)

    def get_cached_alloc(machine: Any, function: Any, number: int) -> Any:
        if (key := (machine.value, number)) not in allocated:
            allocated[key] = invoke(machine, function)
        return allocated[key]

    builtins = {"run_or_capture": run_or_capture, "get_cached_alloc": get_cached_alloc}
    names = {f"vm.builtin.cuda_graph.{name}": builtin for name, builtin in builtins.items()}
    usual = {name: tvm_ffi.get_global_func(name, allow_missing=True) for name in names}
    for name, builtin in names.items():
        tvm_ffi.register_global_func(name, builtin, override=True)
    try:
        yield launched
    finally:
        for name, before in usual.items():
            tvm_ffi.registry.remove_global_func(name)
            if before is not None:
                tvm_ffi.register_global_func(name, before)


def export_captured(path: Path) -> None:
    """A library for this machine's CPU of y = tanh(exp(x) @ weight) @ weight, planned as a CUDA network is."""
    tvm = import_tvm()
    from tvm import relax

    from tvm_sparse.network.capture import outputs_as_parameters
    from tvm_sparse.tvm_support import pass_config

    x = relax.Var("x", relax.TensorType(SHAPE, "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            value = builder.emit(relax.op.exp(x))
            for activation in (relax.op.tanh, None):
                value = builder.emit(relax.op.matmul(value, relax.const(weight())))
                value = builder.emit(activation(value)) if activation else value
            result = builder.emit_output(value)
        builder.emit_func_output(result)
    target = tvm.target.Target("llvm")
    module = relax.transform.LegalizeOps()(builder.get())
    with target, pass_config({"relax.backend.use_cuda_graph": True}):
        module = outputs_as_parameters(module, target)
        executable = tvm.compile(module, target=target, relax_pipeline="default_build")
    metadata = make_metadata(
        model="captured",
        inputs=(SPEC,),
        outputs=OUTPUTS,
        target=target,
        layers=[],
        dense_bytes=0,
        sparse_bytes=0,
        cuda_graph=True,
    )
    export_library(executable, metadata, path)


def weight() -> Any:
    return np.random.default_rng(5).standard_normal((5, 5)).astype("float32")


def expected(x: Any) -> Any:
    """What it computes, in float64."""
    filters = weight().astype("float64")
    return np.tanh(np.exp(np.asarray(x, "float64")) @ filters) @ filters
