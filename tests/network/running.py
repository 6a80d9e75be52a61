"""Building an imported model for this machine's CPU and running it without an export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tests.network.onnx_models import Array
from tvm_sparse.network.build import BuiltNetwork, build_network
from tvm_sparse.network.imported import ImportedModel
from tvm_sparse.targets import make_target


def build(model: ImportedModel, mode: str) -> BuiltNetwork:
    return build_network(model, make_target("llvm", threads=2), mode, lambda stage, fraction: None)


def run_poisoned(executable: Any, model: ImportedModel, inputs: Mapping[str, Array]) -> list[Array]:
    """Outputs for `inputs`, after a run on NaN, so that memory which a kernel forgets to write holds NaN."""
    machine = relax.VirtualMachine(executable, tvm.cpu())
    poison = [np.full(spec.shape, np.nan if "float" in spec.dtype else 1, spec.dtype) for spec in model.inputs]
    machine["main"](*map(tvm.runtime.tensor, poison))
    result = machine["main"](*(tvm.runtime.tensor(np.asarray(inputs[spec.name])) for spec in model.inputs))
    return [result.numpy()] if hasattr(result, "numpy") else [item.numpy() for item in result]
