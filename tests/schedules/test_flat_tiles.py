"""Tiles of rows one behind the other: right whatever the layer, and with few idle lanes."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from tests.cases import EPILOGUES, Case
from tests.schedules.running import GPU, kernel, run_kernel
from tvm_sparse.compute.flat_tiling import FlatTiling, flat_pixels
from tvm_sparse.compute.warp_tiling import WARP
from tvm_sparse.errors import InputError
from tvm_sparse.schedules import template
from tvm_sparse.workload import ConvWorkload

SAME = (1, 1, 1, 1)
MISSING = "two images a thread, one of them missing"
LAYERS = {
    "rows of 13": ({"n": 2, "c": 6, "h": 13, "w": 13, "padding": SAME}, "1x1x6"),
    MISSING: ({"n": 3, "c": 5, "h": 13, "w": 13, "padding": SAME}, "2x1x6"),
    "rows of 14, copies of 8 bytes": ({"n": 2, "c": 6, "h": 14, "w": 14, "padding": SAME}, "1x1x7"),
    "rows of 12, copies of 16 bytes": ({"n": 2, "c": 6, "h": 9, "w": 12, "padding": SAME}, "1x1x5"),
    "5x5": ({"n": 2, "c": 4, "h": 11, "w": 27, "r": 5, "s": 5, "padding": (2, 2, 2, 2)}, "1x1x10"),
    "no padding": ({"n": 2, "c": 6, "h": 13, "w": 11}, "1x1x4"),
    "padding on one side": ({"n": 2, "c": 6, "h": 9, "w": 13, "padding": (1, 2, 0, 0)}, "1x1x4"),
    "more padding than the kernel needs": ({"n": 1, "c": 4, "h": 6, "w": 7, "padding": (3, 0, 3, 5)}, "1x1x5"),
    "dilation": ({"n": 2, "c": 6, "h": 13, "w": 13, "padding": (2, 2, 2, 2), "dilation": (2, 2)}, "1x1x7"),
    "tiles of two rows": ({"n": 2, "c": 4, "h": 5, "w": 16, "s": 1, "padding": (1, 0, 1, 0)}, "1x1x1"),
    "groups": ({"n": 2, "c": 8, "h": 9, "w": 9, "padding": SAME, "groups": 2}, "1x1x3"),
    "epilogue": ({"n": 2, "c": 6, "h": 13, "w": 13, "padding": SAME, "epilogue": EPILOGUES[6]}, "1x1x6"),
}
needs_gcc = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")


def case_of(sizes: dict, dtype: str = "float32") -> Case:
    return Case(ConvWorkload(**{"k": 16, "r": 3, "s": 3, "dtype": dtype, **sizes}), 0.2, "rows", 1)


@needs_gcc
@pytest.mark.parametrize("name", LAYERS)
def test_flat_tiles_are_right(name):
    sizes, pixels = LAYERS[name]
    case = case_of(sizes)
    knobs = {"lanes": "flat", "pixels": pixels, "channels": 2, "pad_to": 2, "warps": 2, "blocks_per_warp": 2}
    assert case.wrong(run_kernel(kernel("cuda_pixel", case, GPU, **knobs), case, GPU)) is None


@needs_gcc
@pytest.mark.parametrize("over", ["blocks", "warps"])
@pytest.mark.parametrize(("name", "pixels"), [("rows of 13", "1x1x6"), (MISSING, "2x1x6")])
def test_flat_tiles_with_split_sums_are_right(name, pixels, over):
    case = case_of(LAYERS[name][0])
    knobs = {"lanes": "flat", "pixels": pixels, "channels": 2, "pad_to": 1, "warps": 2, "blocks_per_warp": 1}
    built = kernel("cuda_pixel_nonzero", case, GPU, **knobs, splits=2, split_over=over)
    assert case.wrong(run_kernel(built, case, GPU)) is None


@needs_gcc
def test_flat_tiles_of_16_bit_elements_are_right():
    case = case_of(LAYERS["rows of 13"][0], "float16")
    knobs = {"lanes": "flat", "pixels": "1x1x6", "channels": 2, "warps": 2, "blocks_per_warp": 2, "pairs": "no"}
    assert case.wrong(run_kernel(kernel("cuda_pixel", case, GPU, **knobs), case, GPU)) is None
    with pytest.raises(InputError, match="no pairs in a flat tile"):
        kernel("cuda_pixel", case, GPU, **{**knobs, "pairs": "float32"})


@pytest.mark.parametrize(
    ("sizes", "pixels", "complaint"),
    [
        ({"n": 1, "c": 4, "h": 9, "w": 9, "stride": (2, 2)}, "1x1x2", "stride"),
        ({"n": 1, "c": 4, "h": 1, "w": 49, "r": 1, "s": 1}, "1x1x2", "one row only"),
        ({"n": 1, "c": 4, "h": 9, "w": 9, "padding": SAME}, "1x1x2", "no image and no rows"),
        ({"n": 1, "c": 4, "h": 9, "w": 9, "padding": SAME}, "1x2x2", "in one row"),
    ],
)
def test_what_has_no_flat_tiles(sizes, pixels, complaint):
    if complaint in ("stride", "one row only"):
        assert not flat_pixels(case_of(sizes).workload, 14)
        assert "flat" not in template("cuda_pixel").space(case_of(sizes).workload, GPU)["lanes"]
    with pytest.raises(InputError, match=complaint):
        kernel("cuda_pixel", case_of(sizes), GPU, lanes="flat", pixels=pixels)


@pytest.mark.parametrize(("size", "positions"), [(13, 6), (14, 7), (7, 2), (12, 7)])
def test_every_output_has_a_place_of_its_own_that_reads_its_input(size, positions):
    workload = ConvWorkload(2, 3, size, size, 4, 3, 3, padding=SAME)
    tiling = FlatTiling(workload, (1, 1, WARP), (2, 1, positions), 2)
    assert tiling.conflicts == 1
    n, p, q = (axis.ravel() for axis in np.indices((2, tiling.rows, size)))
    own, lane = tiling.pixel_index(n, p, q)
    assert len(np.unique(own * WARP + lane)) == len(n) and own.max() < tiling.pixel_shape[0]
    columns = np.arange(2 * 9, dtype=np.int32)
    at = tiling.offsets(columns)[:, None] + tiling.pixel_address((own, lane))
    assert at.max() < tiling.elements
    width = tiling.copy_width
    *place, conditions = tiling.source(at // width, at % width, 0, 0, 0, 0)
    taps = columns[:, None] % 9
    wanted = [n, columns[:, None] // 9, p + taps // 3 - 1, q + taps % 3 - 1]
    exists = (wanted[2] >= 0) & (wanted[2] < size) & (wanted[3] >= 0) & (wanted[3] < size)
    assert np.array_equal(np.all(np.broadcast_arrays(*conditions), axis=0), exists)
    for found, expected in zip(place, wanted, strict=True):
        assert np.array_equal(found[exists], np.broadcast_to(expected, at.shape)[exists])


def test_the_default_of_odd_rows_is_flat():
    workload = ConvWorkload(32, 256, 13, 13, 384, 3, 3, padding=SAME)
    assert template("cuda_pixel").default(workload, 0.1, GPU)["lanes"] == "flat"
    assert template("cuda_pixel").default(ConvWorkload(32, 64, 1, 196, 64, 1, 1), 0.1, GPU)["lanes"] != "flat"
