"""Small compiled networks that the deploy tests share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cuda_kernels import LENGTH, scaled_root
from tvm_sparse.deploy import Metadata, TensorSpec, export_library, make_metadata
from tvm_sparse.tvm_support import import_tvm

INPUTS = (TensorSpec("input.1", (4, 8), "float32"), TensorSpec("bias", (3,), "float32"))
OUTPUTS = (TensorSpec("relu", (4, 3), "float32"), TensorSpec("twice", (3,), "float32"))


@dataclass(frozen=True)
class Compiled:
    """A Relax executable, its metadata, and what it should compute."""

    executable: Any
    metadata: Metadata
    expected: Callable[[Any, Any], tuple[np.ndarray, np.ndarray]]


def compile_two_outputs(weight: np.ndarray) -> Compiled:
    """relu(input @ weight + bias), bias + bias; for this machine's CPU."""
    tvm = import_tvm()
    from tvm import relax

    x, bias = (relax.Var(f"v{i}", relax.TensorType(spec.shape, spec.dtype)) for i, spec in enumerate(INPUTS))
    builder = relax.BlockBuilder()
    with builder.function("main", [x, bias]):
        with builder.dataflow():
            product = builder.emit(relax.op.matmul(x, relax.const(weight)))
            relu = builder.emit(relax.op.nn.relu(builder.emit(relax.op.add(product, bias))))
            results = builder.emit_output((relu, builder.emit(relax.op.add(bias, bias))))
        builder.emit_func_output(results)
    target = tvm.target.Target({"kind": "llvm", "mcpu": str(tvm.target.codegen.llvm_get_system_cpu())})
    metadata = make_metadata(
        model="two outputs",
        inputs=INPUTS,
        outputs=OUTPUTS,
        target=target,
        layers=[{"name": "layer", "nnz": np.int64(7)}],
        dense_bytes=96,
        sparse_bytes=28,
    )

    def expected(x: Any, bias: Any) -> tuple[np.ndarray, np.ndarray]:
        return np.maximum(np.asarray(x, "float64") @ weight + np.asarray(bias, "float64"), 0), 2 * np.asarray(bias)

    return Compiled(tvm.compile(builder.get(), target=target), metadata, expected)


@pytest.fixture(scope="session")
def compiled() -> Compiled:
    return compile_two_outputs(np.random.default_rng(3).standard_normal((8, 3)).astype("float32"))


@pytest.fixture(scope="session")
def library(compiled: Compiled, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("library") / "net.so"
    export_library(compiled.executable, compiled.metadata, path)
    return path


def cuda_network(target: Any) -> Any:
    """A Relax executable around the kernel of `scaled_root`, as build.generate_code makes it; inside a `cuda_build`."""
    import_tvm()
    from tvm import relax

    from tvm_sparse.network.build import generate_code

    kernel = scaled_root()["main"].without_attr("global_symbol").with_attr("tirx.is_scheduled", True)
    x = relax.Var("x", relax.TensorType((LENGTH,), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        function = builder.add_func(kernel.with_attr("op_pattern", 8), "scaled_root")
        with builder.dataflow():
            call = relax.call_tir(function, [x], relax.TensorType((LENGTH,), "float32"))
            result = builder.emit_output(builder.emit(call))
        builder.emit_func_output(result)
    return generate_code(builder.get(), target, lambda stage, fraction: None)
