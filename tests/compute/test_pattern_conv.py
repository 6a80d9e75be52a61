"""The staged tile of a pattern: every filter column finds its input, and a warp's pixels lie in different banks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cases import cases
from tvm_sparse.compute.pattern_conv import BANKS, PatternTiling, pad_filter
from tvm_sparse.errors import InputError
from tvm_sparse.workload import ConvWorkload

LAYERS = {
    "56x56": ConvWorkload(32, 64, 56, 56, 64, 3, 3, padding=(1, 1, 1, 1)),
    "28x28": ConvWorkload(32, 128, 28, 28, 128, 3, 3, padding=(1, 1, 1, 1)),
    "14x14": ConvWorkload(32, 256, 14, 14, 256, 3, 3, padding=(1, 1, 1, 1)),
    "7x7": ConvWorkload(32, 64, 7, 7, 64, 3, 3, padding=(1, 1, 1, 1)),
    "5x5": ConvWorkload(8, 16, 28, 28, 32, 5, 5, padding=(2, 2, 2, 2)),
    "dilated": ConvWorkload(1, 16, 32, 32, 32, 3, 3, padding=(2, 2, 2, 2), dilation=(2, 2)),
    "stride 2": ConvWorkload(1, 64, 56, 56, 64, 3, 3, padding=(1, 1, 1, 1), stride=(2, 2)),
    "11x11 stride 4": ConvWorkload(1, 3, 227, 227, 96, 11, 11, stride=(4, 4)),
}
TILES = {
    "56x56": [(1, 4, 56), (4, 8, 8), (1, 7, 28)],
    "28x28": [(1, 8, 28), (8, 4, 4), (2, 7, 14)],
    "14x14": [(1, 14, 14), (2, 7, 14), (4, 4, 4)],
    "7x7": [(1, 7, 7), (4, 7, 7), (8, 7, 7)],
    "5x5": [(1, 4, 28), (2, 8, 8)],
    "dilated": [(1, 4, 32), (1, 8, 8)],
    "stride 2": [(1, 4, 28), (1, 7, 14)],
    "11x11 stride 4": [(1, 5, 8), (1, 2, 56)],
}


@pytest.mark.parametrize(("layer", "tile"), [(layer, tile) for layer, tiles in TILES.items() for tile in tiles])
def test_a_warp_reads_different_banks(layer, tile):
    channels = 1 if LAYERS[layer].c == 3 else 8
    tiling = PatternTiling(LAYERS[layer], *tile, channels, 32)
    places = np.array([tiling.pixel(f) for f in range(tiling.pixels)])
    for warp in range(0, tiling.pixels, BANKS):
        banks = places[warp : warp + BANKS] % BANKS
        assert len(set(banks)) == len(banks)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(case=cases(), data=st.data())
def test_every_column_finds_its_input(case, data):
    workload = case.workload
    images, rows, cols = (data.draw(st.integers(1, most)) for most in (4, 6, 9))
    tiling = PatternTiling(workload, images, rows, cols, data.draw(st.integers(1, 9)), 1)
    assert tiling.elements == tiling.planes * tiling.plane
    c, r, s = (data.draw(st.integers(0, size - 1)) for size in (tiling.channels, workload.r, workload.s))
    f = data.draw(st.integers(0, tiling.pixels - 1))
    ty, tx = (data.draw(st.integers(0, size - 1)) for size in tiling.grid[1:])
    place = tiling.offset(c, r, s) + tiling.pixel(f)
    assert 0 <= place < tiling.elements
    image, channel, row, col, inside = tiling.source(place, ty, tx)
    p, q = ty * rows + f // cols % rows, tx * cols + f % cols
    expected_row = p * workload.stride[0] + r * workload.dilation[0] - workload.padding[0]
    expected_col = q * workload.stride[1] + s * workload.dilation[1] - workload.padding[1]
    assert (image, channel, row, col) == (f // (rows * cols), c, expected_row, expected_col)
    assert all(inside) == (0 <= row < workload.h and 0 <= col < workload.w)


def test_padding_is_zeros_at_the_end():
    workload = ConvWorkload(1, 5, 8, 8, 7, 3, 3)
    weight = np.random.default_rng(0).standard_normal(workload.filter_shape).astype(np.float32)
    padded = pad_filter(weight, PatternTiling(workload, 1, 4, 4, 2, 4))
    assert padded.shape == (8, 6, 3, 3)
    assert np.array_equal(padded[:7, :5], weight)
    assert not padded[7:].any() and not padded[:, 5:].any()


@pytest.mark.parametrize(
    ("tile", "message"), [((1, 0, 4), "1 or more"), ((1, 4, 4), "only a 1x1 filter"), ((1, 4, 4), "without padding")]
)
def test_what_cannot_be_tiled_is_refused(tile, message):
    with pytest.raises(InputError, match=message):
        PatternTiling(LAYERS["28x28"], *tile, 8, 32, staged=False)
