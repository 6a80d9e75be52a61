"""Building an imported model and running it on this machine's CPU without an export."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.target import Target

from tests.network.onnx_models import Array
from tvm_sparse.network.build import BuiltNetwork, generate_code, lower_network
from tvm_sparse.network.imported import ImportedModel
from tvm_sparse.targets import make_target

_M_PERTURB = -6  # of glibc's malloc.h


def build(model: ImportedModel, mode: str, target: Target | None = None, cuda_graph: bool = True) -> BuiltNetwork:
    """As tvm_sparse.compile does it for one batch size, by default for this machine's CPU."""
    target = target or make_target("llvm", threads=2)
    module, layers = lower_network(model, target, mode, silent)
    return BuiltNetwork(generate_code(module, target, silent, cuda_graph), layers)


def silent(stage: str, fraction: float) -> None:
    """Tells nobody how far a stage is."""


def run_poisoned(executable: Any, model: ImportedModel, inputs: Mapping[str, Array]) -> list[Array]:
    """Outputs for `inputs`, computed in memory that holds NaN wherever a kernel forgets to write."""
    with _nan_from_malloc():
        machine = relax.VirtualMachine(executable, tvm.cpu(), memory_cfg="naive")
        result = machine["main"](*(tvm.runtime.tensor(np.asarray(inputs[spec.name])) for spec in model.inputs))
    return [result.numpy()] if hasattr(result, "numpy") else [item.numpy() for item in result]


@contextmanager
def _nan_from_malloc() -> Iterator[None]:
    """Fresh memory is all ones, which is NaN in every float type; where the C library is glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        yield
        return
    mallopt(_M_PERTURB, 0x100)  # malloc fills with the complement of the low byte
    try:
        yield
    finally:
        mallopt(_M_PERTURB, 0)
