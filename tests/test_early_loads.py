"""What a kernel loads early is what it would have loaded late: every template's CUDA code, run on the CPU."""

from __future__ import annotations

from functools import partial

import pytest
import tvm

from tests import cuda_on_cpu
from tests.cases import Case
from tests.schedules.running import GPU, kernel, run_kernel
from tvm_sparse.schedules.base import Kernel
from tvm_sparse.tvm_support.dependent_launch import dependent_launch_pipeline
from tvm_sparse.workload import ConvWorkload, Epilogue

EVERYTHING = Epilogue(bias=True, residual=True, activation="relu")
WORKLOADS = {
    "cuda_pixel": ConvWorkload(1, 12, 9, 11, 24, 3, 3, padding=(1, 1, 1, 1), epilogue=EVERYTHING),
    "cuda_pixel_nonzero": ConvWorkload(2, 40, 9, 11, 24, 3, 3, padding=(1, 1, 1, 1), epilogue=EVERYTHING),
    "cuda_pattern": ConvWorkload(1, 12, 7, 9, 8, 3, 3, padding=(1, 1, 1, 1), epilogue=EVERYTHING),
    "cuda_row": ConvWorkload(2, 64, 1, 1, 24, 1, 1, epilogue=EVERYTHING),
}
KNOBS = {"cuda_pixel_nonzero": {"split_over": "blocks", "warps": 2, "channels": 3, "splits": 4, "blocks_per_warp": 2}}


def constants_of(built: Kernel) -> set[str]:
    """The parameters that no kernel writes."""
    names = [str(param.name) for param in built.func.params]
    return {"bias", *names[1 : 1 + len(built.constants.arrays)]}


@pytest.mark.parametrize("name", WORKLOADS)
def test_kernels_that_load_early_are_right(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(WORKLOADS[name], 0.2, "channels", 3)
    built = kernel(name, case, GPU, **KNOBS.get(name, {}))
    lowering = dependent_launch_pipeline(["sm_90"], {"main": constants_of(built)})
    sources: list[str] = []
    plain = cuda_on_cpu.cuda_source
    monkeypatch.setattr(tvm, "compile", partial(tvm.compile, tir_pipeline=lowering))
    monkeypatch.setattr(cuda_on_cpu, "cuda_source", lambda *given: sources.append(plain(*given)) or sources[-1])
    assert case.wrong(run_kernel(built, case, GPU)) is None
    if name == "cuda_row":  # adds across its threads before it knows who stores
        return
    before, after = sources[0].rsplit("wait_for_kernels_in_front();", 1)
    assert "bias_early" in before.rsplit("__global__", 1)[1] and "residual_early" in after.split("syncthreads")[0]
