"""The dense template: its code thread by thread on this CPU against float64, its filter's layout, its limits."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from tests.cases import Case, choose_knobs, seeded, seeded_choose
from tests.schedules.running import GPU, kernel, run_kernel
from tvm_sparse.compute.dense_conv import dense_filter
from tvm_sparse.errors import InputError
from tvm_sparse.schedules import dense_cost, template
from tvm_sparse.workload import ConvWorkload, Epilogue

needs_gcc = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
DENSE = template("cuda_dense")
BIAS_RELU = Epilogue(bias=True, activation="relu")
LAYERS = {
    "three channels, stride 2": ConvWorkload(1, 3, 17, 17, 12, 7, 7, (2, 2), (3, 3, 3, 3), epilogue=BIAS_RELU),
    "stride 4": ConvWorkload(1, 3, 30, 30, 8, 11, 11, (4, 4)),
    "residual": ConvWorkload(2, 8, 14, 14, 16, 3, 3, padding=(1, 1, 1, 1), epilogue=Epilogue(True, True, "relu")),
    "pointwise, several images": ConvWorkload(3, 33, 1, 49, 32, 1, 1, epilogue=Epilogue(bias=True)),
    "a last chunk that is short": ConvWorkload(1, 41, 7, 7, 20, 3, 3, padding=(1, 1, 1, 1)),
    "channels that fill no block": ConvWorkload(1, 5, 9, 9, 7, 3, 3),
    "groups": ConvWorkload(1, 12, 9, 9, 16, 5, 5, padding=(2, 2, 2, 2), groups=2, epilogue=BIAS_RELU),
    "dilation": ConvWorkload(1, 4, 13, 13, 8, 3, 3, padding=(2, 2, 2, 2), dilation=(2, 2)),
    "one pixel": ConvWorkload(1, 9, 1, 1, 8, 1, 1),
}


def complaint(case: Case, **changes: int | str) -> str | None:
    return case.wrong(run_kernel(kernel("cuda_dense", case, GPU, **changes), case, GPU))


@needs_gcc
@pytest.mark.parametrize("layer", LAYERS)
def test_its_default_is_right(layer):
    assert complaint(Case(LAYERS[layer], 1.0, "", 3)) is None


@needs_gcc
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("layer", ["three channels, stride 2", "residual", "pointwise, several images", "one pixel"])
def test_16_bit_elements(layer, dtype):
    assert complaint(Case(replace(LAYERS[layer], dtype=dtype), 1.0, "", 3)) is None


@needs_gcc
@pytest.mark.parametrize("splits", [2, 4])
def test_splits_add_up(splits):
    case = Case(LAYERS["residual"], 1.0, "", 4)
    changes = {"splits": splits, "pixels": "1x2x2", "vector": 8, "warps": 2, "channels": 2}
    assert complaint(case, **changes) is None


@needs_gcc
@pytest.mark.parametrize("changes", [{"buffers": 1}, {"rows": "adjacent"}, {"buffers": 1, "rows": "adjacent"}], ids=str)
@pytest.mark.parametrize("layer", ["three channels, stride 2", "stride 4", "residual", "groups"])
def test_single_buffers_and_adjacent_rows(layer, changes):
    shape = {"lanes": "1x2x16", "pixels": "1x3x1", "channels": 2, "warps": 2, "vector": 4, "splits": 1}
    assert complaint(Case(LAYERS[layer], 1.0, "", 5), **shape, blocks_per_sm=2, **changes) is None


def test_copies_of_4_bytes_are_of_float32_only():
    """An element of 16 bits is no whole copy: none is started for it."""
    for dtype, expected in (("float32", True), ("float16", False)):
        case = Case(replace(LAYERS["three channels, stride 2"], dtype=dtype), 1.0, "", 3)
        assert ("T.ptx.cp(" in kernel("cuda_dense", case, GPU, buffers=1).func.script()) is expected


@pytest.mark.slow
@needs_gcc
def test_any_knobs_are_right():
    passed = 0
    for case in seeded(8, 60):
        if DENSE.applies(case.workload, GPU) is not None:
            continue
        for draw in range(20):
            changes = choose_knobs(seeded_choose(case.seed + draw), DENSE.space(case.workload, GPU))
            try:
                assert complaint(case, **changes) is None, (case, changes)
            except InputError:
                continue
            passed += 1
            break
    assert passed >= 25


def test_the_default_fits_whatever_applies():
    for case in seeded(9, 60):
        if DENSE.applies(case.workload, GPU) is None:
            assert kernel("cuda_dense", case, GPU).template == "cuda_dense"


@needs_gcc
@pytest.mark.parametrize("buffers", [1, 2])
@pytest.mark.parametrize("splits", [1, 2])
def test_blocks_of_odd_numbers_of_channels_hold_tiles_of_one_group(splits, buffers):
    """s_tir does not see that all channels of such a block are of one group, and gave it the tiles of several."""
    case = Case(ConvWorkload(2, 8, 13, 13, 48, 3, 3, padding=(1, 1, 1, 1), groups=2), 1.0, "", 1)
    knobs = {"lanes": "1x2x16", "pixels": "1x2x1", "channels": 2, "warps": 3, "vector": 4, "rows": "adjacent"}
    built = kernel("cuda_dense", case, GPU, **knobs, splits=splits, buffers=buffers, blocks_per_sm=0)
    assert case.wrong(run_kernel(built, case, GPU)) is None


@needs_gcc
@pytest.mark.parametrize("warps", [1, 6])
def test_a_tile_does_not_lie_where_its_filter_is(warps):
    """Of one channel and tap all weights are in registers before the first pixel is loaded."""
    case = Case(ConvWorkload(4, 1, 17, 13, 24, 1, 1, padding=(1, 1, 1, 1)), 1.0, "", 1)
    knobs = {"lanes": "1x8x4", "pixels": "1x2x2", "channels": 1, "warps": warps, "vector": 4, "rows": "apart"}
    built = kernel("cuda_dense", case, GPU, **knobs, splits=1, buffers=1, blocks_per_sm=1)
    assert case.wrong(run_kernel(built, case, GPU)) is None


def test_the_filter_keeps_its_weights_in_their_places():
    workload = LAYERS["a last chunk that is short"]
    weight = np.random.default_rng(0).standard_normal(workload.filter_shape).astype(np.float32)
    knobs = {**DENSE.default(workload, 1.0, GPU), "channels": 8, "splits": 2}
    tiling = DENSE.tiling(workload, knobs)
    values = dense_filter(weight, tiling, 8).values
    assert values.shape == (6, 3, 8, 3, 3, 2, 4)
    for k, c, r, s in ((0, 0, 0, 0), (19, 40, 2, 1), (9, 17, 1, 2)):
        assert values[c // 8, k // 8, c % 8, r, s, k % 8 // 4, k % 4] == weight[k, c, r, s]
    assert np.count_nonzero(values) == weight.size


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warps": 16, "splits": 4}, "threads a block"),
        ({"pixels": "1x14x1", "vector": 16}, "sums a thread"),
        ({"splits": 8, "pixels": "1x7x1", "vector": 4}, "cannot share"),
        ({"splits": 2, "pixels": "2x7x1"}, "cannot share"),
        ({"channels": 256, "vector": 16}, "shared memory"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    workload = ConvWorkload(32, 256, 14, 14, 256, 3, 3, padding=(1, 1, 1, 1))
    knobs = {"lanes": "1x2x16", "pixels": "1x1x1", "channels": 4, "warps": 1, "vector": 4, "splits": 1, **changes}
    knobs |= {"rows": "apart", "buffers": 2, "blocks_per_sm": 0}
    with pytest.raises(InputError, match=message):
        dense_cost.check_block(DENSE.tiling(workload, knobs), dense_cost.Block.of(knobs), GPU)
    assert DENSE.applies(ConvWorkload(1, 8, 4, 4, 12, 1, 1, groups=2), GPU) is not None
