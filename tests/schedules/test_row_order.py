"""Rows dealt out to warps and blocks so that none has much more to do than the others."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cases import EPILOGUES, Case
from tests.schedules.running import GPU, run_kernel
from tvm_sparse.schedules import template
from tvm_sparse.schedules.row_order import balanced_order
from tvm_sparse.workload import ConvWorkload

RAGGED = np.array([90, 80, 70, 60, 50, 40, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0])


def longest(row_nnz: np.ndarray, rows: int) -> int:
    return max(row_nnz[start : start + rows].sum() for start in range(0, len(row_nnz), rows))


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    row_nnz=st.lists(st.integers(0, 500), min_size=1, max_size=70).map(np.array),
    per_warp=st.sampled_from((1, 2, 3, 4, 8)),
    warps=st.sampled_from((1, 2, 4, 16)),
)
def test_every_row_has_its_place(row_nnz, per_warp, warps):
    order = balanced_order(row_nnz, per_warp, warps)
    if order is not None:
        assert sorted(order) == list(range(len(row_nnz)))


def test_blocks_and_warps_of_ragged_rows_become_alike():
    order = balanced_order(RAGGED, 2, 2)
    assert longest(RAGGED, 4) == 300 and longest(RAGGED[order], 4) <= 150
    assert longest(RAGGED[order], 2) < 0.6 * longest(RAGGED, 2)


def test_rows_that_are_alike_stay_where_they_are():
    rng = np.random.default_rng(0)
    for per_warp, warps in ((4, 16), (2, 32), (1, 16)):
        assert balanced_order(rng.binomial(2304, 0.1, 256), per_warp, warps) is None


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
@pytest.mark.parametrize("name", ["cuda_pixel", "cuda_pixel_nonzero"])
def test_a_reordered_filter_is_stored_in_its_own_order(name):
    epilogue = next(epilogue for epilogue in EPILOGUES if epilogue.bias and epilogue.residual)
    workload = ConvWorkload(2, 12, 9, 11, 21, 3, 3, padding=(1, 1, 1, 1), epilogue=epilogue)
    case = Ragged(workload, 0.4, "", 3)
    chosen = template(name)
    knobs = {**chosen.default(workload, 0.2, GPU), "warps": 2, "blocks_per_warp": 2, "channels": 4}
    built = chosen.kernel(workload, case.weight(), GPU, knobs)
    assert built.func.params[4].name == "order"
    complaint = case.wrong(run_kernel(built, case, GPU))
    assert complaint is None, complaint


class Ragged(Case):
    """A case whose first rows have most of the nonzeros."""

    def weight(self) -> np.ndarray:
        weight = super().weight()
        weight[8:] *= np.random.default_rng(self.seed).random(weight[8:].shape) < 0.1
        return weight
