"""Stretched offsets: offset(column) + pixel address leads to the input element the convolution needs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cases import cases
from tvm_sparse.compute.geometry import Source
from tvm_sparse.compute.packed_filter import ROW_START, pack_filter, stage_filter
from tvm_sparse.compute.pair_tiling import PairTiling, pair_axis
from tvm_sparse.compute.vector_tiling import LAYOUTS, VectorTiling
from tvm_sparse.compute.warp_tiling import WARP, WarpTiling
from tvm_sparse.errors import InputError
from tvm_sparse.formats import ColumnVectorFilter, CSRFilter
from tvm_sparse.workload import ConvWorkload

LAYER = ConvWorkload(1, 6, 9, 11, 4, 3, 3, padding=(1, 1, 1, 1))
POWERS = (1, 2, 4, 8, 16, 32)
LANES = [(i, r, WARP // i // r) for i, r in itertools.product(POWERS, POWERS) if i * r <= WARP]


def check_way(tiling, rng):
    """Drawn nonzeros and pixels lead to the input elements of the convolution, or to a zero beyond its edge."""
    workload, paired = tiling.workload, isinstance(tiling, PairTiling)
    taps = workload.r * workload.s
    for _ in range(24):
        column = int(rng.integers(workload.c_per_group * taps))
        channel, r, s = column // taps, column % taps // workload.s, column % workload.s
        chunk = channel // tiling.channels
        offset = int(tiling.offsets(np.array([column - chunk * tiling.channels * taps], np.int32))[0])
        n, p, q = (int(rng.integers(size)) for size in (workload.n, workload.p, workload.q))
        index = tiling.pixel_index(n, p, q)
        assert all(0 <= i < size for i, size in zip(index, tiling.pixel_shape, strict=True))
        element = offset + int(tiling.pixel_address(index))
        assert 0 <= element < (tiling.words if paired else tiling).elements
        width = (tiling.words if paired else tiling).copy_width
        tile = (n // tiling.images, p // tiling.rows, q // tiling.cols)
        place = (element // width, element % width, *(index[-1:] if paired else ()))
        source = tiling.source(*place, chunk, *tile)
        row = p * workload.stride[0] + r * workload.dilation[0] - workload.padding[0]
        col = q * workload.stride[1] + s * workload.dilation[1] - workload.padding[1]
        exists = 0 <= row < workload.h and 0 <= col < workload.w
        assert all(source.inside) == exists, (tiling, source)
        if exists:
            assert source[:4] == (n, channel, row, col), (tiling, source)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    case=cases(),
    layout=st.sampled_from(LAYOUTS),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 4)),
)
def test_vector_tiles_lead_to_the_input(case, layout, size):
    check_way(VectorTiling(case.workload, *size, layout), np.random.default_rng(case.seed))


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    case=cases(),
    lanes=st.sampled_from(LANES),
    pixels=st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)),
    channels=st.integers(1, 5),
    adjacent=st.booleans(),
)
def test_warp_tiles_lead_to_the_input(case, lanes, pixels, channels, adjacent):
    check_way(WarpTiling(case.workload, lanes, pixels, channels, 1, adjacent), np.random.default_rng(case.seed))


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    case=cases("float16"),
    lanes=st.sampled_from(LANES),
    pixels=st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)),
    channels=st.integers(1, 5),
)
def test_tiles_of_pairs_lead_to_the_input(case, lanes, pixels, channels):
    if pair_axis(case.workload):
        check_way(PairTiling(case.workload, lanes, pixels, channels), np.random.default_rng(case.seed))
    else:
        with pytest.raises(InputError, match="pairs need 16-bit elements"):
            PairTiling(case.workload, lanes, pixels, channels)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    case=cases(),
    lanes=st.sampled_from(LANES),
    pixels=st.tuples(*[st.integers(1, 4)] * 3),
    channels=st.integers(1, 5),
    adjacent=st.booleans(),
)
def test_every_thread_reads_inside_the_buffer(case, lanes, pixels, channels, adjacent):
    """Those with a pixel beyond the output, too."""
    tiling = WarpTiling(case.workload, lanes, pixels, channels, 1, adjacent)
    columns = np.arange(min(channels, case.workload.c_per_group) * case.workload.r * case.workload.s, dtype=np.int32)
    furthest = max(tiling.pixel_address(index) for index in itertools.product(*map(range, tiling.pixel_shape)))
    assert tiling.offsets(columns).min() >= 0 and tiling.offsets(columns).max() + furthest < tiling.elements


@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    case=cases(), lanes=st.sampled_from(LANES), pixels=st.tuples(*[st.integers(1, 4)] * 3), channels=st.integers(1, 5)
)
def test_the_elements_of_a_copy_lie_together(case, lanes, pixels, channels):
    """All inside the input or all outside, next to each other in memory, and aligned to the width of the copy."""
    tiling = WarpTiling(case.workload, lanes, pixels, channels)
    workload, width, rng = case.workload, tiling.copy_width, np.random.default_rng(case.seed)
    shape = (workload.n, workload.c_per_group, workload.h, workload.w)

    def place(source: Source) -> int:
        return int(np.ravel_multi_index(source[:4], shape))

    for copy in rng.integers(tiling.elements // width, size=40):
        tile = [int(rng.integers(size)) for size in (tiling.chunks, *tiling.grid)]
        sources = [tiling.source(int(copy), element, *tile) for element in range(width)]
        exist = {all(source.inside) for source in sources}
        assert len(exist) == 1
        if exist == {True}:
            first = place(sources[0])
            assert first % width == 0
            assert [place(source) for source in sources] == list(range(first, first + width))


@pytest.mark.parametrize(
    ("workload", "lanes", "pixels", "width"),
    [
        (ConvWorkload(32, 64, 56, 56, 64, 3, 3, padding=(1, 1, 1, 1)), (1, 8, 4), (1, 1, 14), 4),
        (ConvWorkload(32, 256, 14, 14, 256, 3, 3, padding=(1, 1, 1, 1)), (1, 2, 16), (1, 7, 1), 2),
        (ConvWorkload(32, 512, 7, 7, 512, 3, 3, padding=(1, 1, 1, 1)), (4, 1, 8), (1, 7, 1), 1),
        (ConvWorkload(1, 512, 7, 7, 512, 3, 3, padding=(1, 1, 1, 1)), (1, 4, 8), (1, 2, 1), 1),
        (ConvWorkload(32, 2048, 1, 49, 512, 1, 1), (4, 1, 8), (1, 1, 7), 4),
        (ConvWorkload(8, 128, 56, 56, 128, 3, 3, stride=(2, 2), padding=(1, 1, 1, 1)), (1, 8, 4), (1, 1, 7), 1),
        (ConvWorkload(32, 64, 56, 56, 64, 3, 3, padding=(1, 1, 1, 1), dtype="float16"), (1, 8, 4), (1, 1, 14), 8),
    ],
)
def test_a_warp_reads_every_bank_once_and_copies_are_wide(workload, lanes, pixels, width):
    tiling = WarpTiling(workload, lanes, pixels, 8)
    assert (tiling.conflicts, tiling.copy_width) == (1, width)


def test_splits_have_equally_many_chunks():
    assert [VectorTiling(LAYER, 1, 1, 1, splits=splits).chunks for splits in (1, 2, 4, 5)] == [6, 6, 8, 10]
    assert [WarpTiling(LAYER, (1, 1, 32), (1, 1, 1), 1, splits).chunks for splits in (1, 2, 4, 5)] == [6, 6, 8, 10]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "diagonal"}, "unknown tile layout 'diagonal'"),
        ({"rows": 0}, "every size is 1 or more"),
        ({"splits": 0}, "every size is 1 or more"),
    ],
)
def test_bad_vector_tilings_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        VectorTiling(LAYER, **{"rows": 2, "cols": 4, "channels": 2, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lanes": (1, 2, 8)}, "the lanes of a warp are 32"),
        ({"pixels": (1, 0, 1)}, "every size is 1 or more"),
        ({"channels": 0}, "every size is 1 or more"),
    ],
)
def test_bad_warp_tilings_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        WarpTiling(LAYER, **{"lanes": (1, 2, 16), "pixels": (1, 1, 1), "channels": 2, **changes})


def test_packing_counts_in_steps_and_adds_empty_row_blocks():
    weight = np.zeros(LAYER.filter_shape, np.float32)
    weight[1, 0, 0, :2] = weight[3, 5, 2, 2] = 1
    tiling = VectorTiling(LAYER, 2, 4, 4)
    packed = pack_filter(CSRFilter.from_dense(weight).stream(4, 4), tiling, pad_to=4, block_multiple=3)
    np.testing.assert_array_equal(packed.counts, [[0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0]])
    assert packed.starts[1, 3] == 1 and packed.values.shape[0] >= 8


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    case=cases(), pad_to=st.sampled_from((1, 2, 4)), together=st.sampled_from((1, 2, 5)), vector=st.sampled_from((1, 2))
)
def test_a_staged_filter_holds_what_the_packed_one_holds(case, pad_to, together, vector):
    workload = case.workload
    if workload.groups > 1:
        return
    tiling = VectorTiling(workload, 2, 4, 2)
    stream = ColumnVectorFilter.from_dense(case.weight(), vector).stream(2, pad_to)
    packed = pack_filter(stream, tiling, pad_to, together)
    staged = stage_filter(packed, together)
    assert staged.together == together and staged.longest_row == packed.longest_row
    for chunk, block in itertools.product(*map(range, packed.counts.shape)):
        start, count = divmod(int(staged.rows[chunk, block]), ROW_START)
        assert count == packed.counts[chunk, block]
        here, there = slice(start * pad_to, (start + count) * pad_to), packed.starts[chunk, block] * pad_to
        for ours, theirs in ((staged.values, packed.values), (staged.offsets, packed.offsets)):
            np.testing.assert_array_equal(ours[chunk, block // together, here], theirs[there:][: count * pad_to])


def test_packing_for_another_tiling_is_refused():
    weight = np.ones(LAYER.filter_shape, np.float32)
    with pytest.raises(InputError, match="stream in chunks of 3 channels"):
        pack_filter(CSRFilter.from_dense(weight).stream(3), VectorTiling(LAYER, 2, 4, 4))


def test_vectors_over_two_groups_are_refused():
    grouped = ConvWorkload(1, 6, 9, 11, 6, 3, 3, padding=(1, 1, 1, 1), groups=2)
    vectors = ColumnVectorFilter.from_dense(np.ones(grouped.filter_shape, np.float32), 2)
    with pytest.raises(InputError, match="vectors of 2 output channels reach over two groups"):
        pack_filter(vectors.stream(3), VectorTiling(grouped, 2, 4, 3))
