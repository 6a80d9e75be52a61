"""Kernels that wait for those in front of them, run on the CPU: what they give, and the code they are."""

from __future__ import annotations

from functools import partial

import pytest
import tvm

from tests import cuda_on_cpu
from tests.cases import Case
from tests.schedules.running import GPU, run_kernel
from tvm_sparse.schedules.base import Kernel
from tvm_sparse.tvm_support.dependent_launch import constant_names, dependent_launch_pipeline
from tvm_sparse.workload import Epilogue

EVERYTHING = Epilogue(bias=True, residual=True, activation="relu")


def checked_source(built: Kernel, case: Case, monkeypatch: pytest.MonkeyPatch) -> str:
    """The CUDA code of a kernel that waits, once its result is right."""
    weights = constant_names(built.func, len(built.constants.arrays))
    lowering = dependent_launch_pipeline(["sm_90"], {"main": weights})
    sources: list[str] = []
    plain = cuda_on_cpu.cuda_source
    monkeypatch.setattr(tvm, "compile", partial(tvm.compile, tir_pipeline=lowering))
    monkeypatch.setattr(cuda_on_cpu, "cuda_source", lambda *given: sources.append(plain(*given)) or sources[-1])
    assert case.wrong(run_kernel(built, case, GPU)) is None
    return sources[0]
