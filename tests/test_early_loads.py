"""What a kernel loads early is what it would have loaded late: every template's CUDA code, run on the CPU."""

from __future__ import annotations

import pytest

from tests.cases import Case
from tests.schedules.running import GPU, kernel
from tests.waiting_kernels import EVERYTHING, checked_source
from tvm_sparse.workload import ConvWorkload

WORKLOADS = {
    "cuda_pixel": ConvWorkload(1, 12, 9, 11, 24, 3, 3, padding=(1, 1, 1, 1), epilogue=EVERYTHING),
    "cuda_pixel_nonzero": ConvWorkload(2, 40, 9, 11, 24, 3, 3, padding=(1, 1, 1, 1), epilogue=EVERYTHING),
    "cuda_pattern": ConvWorkload(1, 12, 7, 9, 8, 3, 3, padding=(1, 1, 1, 1), epilogue=EVERYTHING),
    "cuda_row": ConvWorkload(2, 64, 1, 1, 24, 1, 1, epilogue=EVERYTHING),
}
KNOBS = {"cuda_pixel_nonzero": {"split_over": "blocks", "warps": 2, "channels": 3, "splits": 4, "blocks_per_warp": 2}}


@pytest.mark.parametrize("name", WORKLOADS)
def test_kernels_that_load_early_are_right(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(WORKLOADS[name], 0.2, "channels", 3)
    built = kernel(name, case, GPU, **KNOBS.get(name, {}))
    source = checked_source(built, case, monkeypatch)
    if name == "cuda_row":  # adds across its threads before it knows who stores
        return
    before, after = source.rsplit("wait_for_kernels_in_front();", 1)
    assert "bias_early" in before.rsplit("__global__", 1)[1] and "residual_early" in after.split("syncthreads")[0]
