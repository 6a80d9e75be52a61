"""Build and run one scheduled convolution on this machine's CPU: as it is, or CUDA code through cuda_on_cpu."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm.target import Target, codegen

from tests.cases import Case
from tests.cuda_on_cpu import run
from tvm_sparse.schedules import template
from tvm_sparse.schedules.base import Kernel
from tvm_sparse.tvm_support import cuda_target

CPU = Target({"kind": "llvm", "mcpu": codegen.llvm_get_system_cpu(), "num-cores": 2})
GPU = cuda_target("sm_90")


def kernel(name: str, case: Case, target: Target, **changes: int | str) -> Kernel:
    """A case scheduled by a template with its default knobs, some of them changed."""
    chosen = template(name)
    default = chosen.default(case.workload, case.density, target)
    return chosen.kernel(case.workload, case.weight(), target, {**default, **changes})


def run_kernel(built: Kernel, case: Case, target: Target) -> np.ndarray:
    """The output of a kernel on the inputs of a case."""
    if target.kind.name == "llvm":
        inputs = case.inputs()
        executable = tvm.compile(tvm.IRModule({"main": built.func}), target=target)
        y = tvm.runtime.tensor(case.poisoned_output())
        executable(*map(tvm.runtime.tensor, (inputs.pop("x"), *built.constants.arrays, *inputs.values())), y)
        return y.numpy()
    with tempfile.TemporaryDirectory() as folder:
        return run(built.func, target, arguments(built, case), shared_bytes(built), Path(folder))


def arguments(built: Kernel, case: Case) -> dict[str, np.ndarray]:
    """What a kernel takes on the inputs of a case, by name: inputs, the filter's arrays and a poisoned output."""
    names = [param.name for param in built.func.params[1:]]
    constants = dict(zip(names, built.constants.arrays, strict=False))
    return {**case.inputs(), **constants, "out": case.poisoned_output()}


def shared_bytes(built: Kernel) -> int:
    """What the template says its blocks take of shared memory; 0 where it stages nothing."""
    chosen: Any = template(built.template)
    if not hasattr(chosen, "shared_bytes"):
        return 0
    staged = [built.constants.entries] if hasattr(built.constants, "entries") else []
    return chosen.shared_bytes(chosen.tiling(built.workload, built.knobs), built.knobs, *staged)
