"""Building an imported model for this machine's CPU and running it without an export."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tests.network.onnx_models import Array
from tvm_sparse.network.build import BuiltNetwork, build_network
from tvm_sparse.network.imported import ImportedModel
from tvm_sparse.targets import make_target

_M_PERTURB = -6  # of glibc's malloc.h


def build(model: ImportedModel, mode: str) -> BuiltNetwork:
    return build_network(model, make_target("llvm", threads=2), mode, lambda stage, fraction: None)


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
