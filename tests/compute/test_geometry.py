"""Stretched offsets: offset(column) + pixel(f) leads to the input element the convolution needs, in every layout."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cases import cases
from tvm_sparse.compute.direct_conv import pack_filter
from tvm_sparse.compute.geometry import LAYOUTS, Tiling
from tvm_sparse.errors import InputError
from tvm_sparse.formats import ColumnVectorFilter, CSRFilter
from tvm_sparse.workload import ConvWorkload

LAYER = ConvWorkload(1, 6, 9, 11, 4, 3, 3, padding=(1, 1, 1, 1))


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    case=cases(),
    layout=st.sampled_from(LAYOUTS),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 4)),
    pitch=st.integers(1, 60),
)
def test_offset_and_pixel_lead_to_the_input(case, layout, size, pitch):
    workload = case.workload
    tiling = Tiling(workload, *size, layout, pitch=pitch)
    rng = np.random.default_rng(case.seed)
    taps = workload.r * workload.s
    for column in rng.integers(workload.c_per_group * taps, size=4):
        offset = int(tiling.offsets(np.array([column], np.int32))[0])
        channel, r, s = column // taps % tiling.channels, column % taps // workload.s, column % workload.s
        for f in rng.integers(tiling.pixels, size=6):
            ty, tx = (int(rng.integers(count)) for count in tiling.grid)
            p, q = ty * tiling.rows + f // tiling.cols, tx * tiling.cols + f % tiling.cols
            element = offset + int(tiling.pixel(int(f)))
            assert 0 <= element < tiling.elements
            if p < workload.p and q < workload.q:
                assert tiling.source(element, ty, tx) == (
                    channel,
                    p * workload.stride[0] + r * workload.dilation[0] - workload.padding[0],
                    q * workload.stride[1] + s * workload.dilation[1] - workload.padding[1],
                )


@pytest.mark.parametrize(("rows", "cols", "lanes"), [(4, 8, 0), (4, 8, 16), (8, 4, 32), (1, 64, 32), (3, 64, 16)])
def test_pixel_index_and_flat_pixel_are_inverse(rows, cols, lanes):
    tiling = Tiling(LAYER, rows, cols, 2, lanes=lanes)
    flat = [tiling.flat_pixel(tiling.pixel_index(p, q)) for p in range(rows, 2 * rows) for q in range(cols, 2 * cols)]
    assert flat == list(range(tiling.pixels))


def test_splits_have_equally_many_chunks():
    assert [Tiling(LAYER, 1, 1, 1, splits=splits).chunks for splits in (1, 2, 4, 5)] == [6, 6, 8, 10]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "diagonal"}, "unknown tile layout 'diagonal'"),
        ({"rows": 0}, "every size is 1 or more"),
        ({"splits": 0}, "every size is 1 or more"),
        ({"lanes": 32}, "do not lie evenly on 32 lanes"),
        ({"rows": 8, "cols": 12, "lanes": 32}, "do not lie evenly on 32 lanes"),
    ],
)
def test_bad_tilings_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        Tiling(LAYER, **{"rows": 2, "cols": 4, "channels": 2, **changes})


def test_packing_counts_in_groups_and_adds_empty_row_blocks():
    weight = np.zeros(LAYER.filter_shape, np.float32)
    weight[1, 0, 0, :2] = weight[3, 5, 2, 2] = 1
    tiling = Tiling(LAYER, 2, 4, 4)
    packed = pack_filter(CSRFilter.from_dense(weight).stream(4, 4), tiling, pad_to=4, block_multiple=3)
    np.testing.assert_array_equal(packed.counts, [[0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0]])
    assert packed.starts[1, 3] == 1 and packed.values.shape[0] >= 8
    assert packed.offsets.max() < tiling.elements


def test_packing_refuses_what_does_not_fit():
    weight = np.ones(LAYER.filter_shape, np.float32)
    with pytest.raises(InputError, match="chunks of 3 channels"):
        pack_filter(CSRFilter.from_dense(weight).stream(3), Tiling(LAYER, 2, 4, 4))
    grouped = ConvWorkload(1, 6, 9, 9, 6, 3, 3, groups=2)
    vectors = ColumnVectorFilter.from_dense(np.ones(grouped.filter_shape, np.float32), 2)
    with pytest.raises(InputError, match="reach over two groups"):
        pack_filter(vectors.stream(3), Tiling(grouped, 2, 4, 3))
