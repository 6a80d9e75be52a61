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
from tvm_sparse.schedules.cuda_tiles import row_order
from tvm_sparse.schedules.row_order import balanced_order, block_loads
from tvm_sparse.workload import ConvWorkload

RAGGED = np.array([90, 80, 70, 60, 50, 40, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0])[:, None]


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    rows=st.lists(st.lists(st.integers(0, 500), min_size=3, max_size=3), min_size=1, max_size=70),
    per_warp=st.sampled_from((1, 2, 3, 4, 8)),
    warps=st.sampled_from((1, 2, 4, 16)),
)
def test_every_row_has_its_place_and_no_block_takes_longer(rows, per_warp, warps):
    loads = np.array(rows)
    order = balanced_order(loads, per_warp, warps)
    if order is not None:
        assert sorted(order) == list(range(len(loads)))
        assert block_loads(loads[order], per_warp, warps).max() < block_loads(loads, per_warp, warps).max()


def test_blocks_and_warps_of_ragged_rows_become_alike():
    order = balanced_order(RAGGED, 2, 2)
    assert list(block_loads(RAGGED, 2, 2)) == [170, 90, 13, 5]
    assert block_loads(RAGGED[order], 2, 2).max() == 90, "the longest row and none"


def test_warps_become_alike_in_every_chunk():
    loads = np.array([[9, 1], [8, 1], [1, 9], [1, 8]])
    assert list(block_loads(loads, 2, 2)) == [17 + 17]
    assert list(block_loads(loads[balanced_order(loads, 2, 2)], 2, 2)) == [10 + 10]


def test_rows_that_are_alike_stay_where_they_are():
    rng = np.random.default_rng(0)
    assert balanced_order(np.full((64, 4), 9), 4, 16) is None
    assert balanced_order(rng.binomial(576, 0.1, (256, 4)), 2, 32) is None, "as random as r50_14_3"


def test_rows_stay_in_their_group():
    workload = ConvWorkload(2, 16, 9, 9, 32, 3, 3, padding=(1, 1, 1, 1), groups=2)
    weight = np.random.default_rng(0).random(workload.filter_shape) < np.linspace(0.01, 0.5, 32)[:, None, None, None]
    order = row_order(workload, weight, {"warps": 2, "blocks_per_warp": 4, "channels": 4, "pad_to": 1, "format": "csr"})
    assert order is not None and set(order[:16]) == set(range(16)) and set(order) == set(range(32))


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
@pytest.mark.parametrize("name", ["cuda_pixel", "cuda_pixel_nonzero"])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_reordered_filter_is_stored_in_its_own_order(name, groups):
    epilogue = next(epilogue for epilogue in EPILOGUES if epilogue.bias and epilogue.residual)
    k = 21 if groups == 1 else 24
    workload = ConvWorkload(2, 12, 9, 11, k, 3, 3, padding=(1, 1, 1, 1), groups=groups, epilogue=epilogue)
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
