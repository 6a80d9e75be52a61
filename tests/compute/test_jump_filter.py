"""Programs hold every nonzero once, behind the load of its window, and end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from tests.cases import Case, cases
from tvm_sparse.compute.jump_filter import Codes, JumpFilter, Window, jump_filter
from tvm_sparse.compute.packed_filter import ROW_START
from tvm_sparse.compute.warp_tiling import WarpTiling
from tvm_sparse.errors import InputError
from tvm_sparse.workload import ConvWorkload

quick = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
LAYER = ConvWorkload(2, 32, 14, 14, 24, 3, 3, padding=(1, 1, 1, 1))


def tiling_of(workload: ConvWorkload, channels: int = 5, splits: int = 1) -> WarpTiling:
    return WarpTiling(workload, (1, 2, 16), (1, 4, 1), channels, splits, adjacent=True)


def carried_out(packed: JumpFilter, tiling: WarpTiling) -> np.ndarray:
    """The filter that programs multiply by, from what an input of ones at one place of the tile adds to the sums.

    (k, c/groups, r, s); every instruction is carried out as the kernel does, on addresses in place of numbers.
    """
    workload, window = tiling.workload, Window.of(tiling)
    codes = Codes(len(window.places), packed.vector)
    taps = workload.r * workload.s
    address = {}
    for channel in range(tiling.channels):
        columns = np.arange(channel * taps, (channel + 1) * taps, dtype=np.int32)
        for tap, offset in enumerate(tiling.offsets(columns).tolist()):
            address[offset] = channel, tap
    dense = np.zeros((packed.row_blocks * packed.vector, tiling.chunks * tiling.channels, taps), np.float32)
    pixels = [tiling.pixel_address((own, 0)) for own in range(tiling.pixel_shape[0])]
    for chunk, segment in np.ndindex(packed.program.shape[:2]):
        for row in range(packed.together):
            block = segment * packed.together + row
            start, length = divmod(int(packed.rows[chunk, block]), ROW_START)
            pairs = packed.program[chunk, segment, start : start + length]
            words, kinds = pairs[1:, 0], pairs[:-1, 1]
            assert kinds[-1] == codes.end and codes.end not in kinds[:-1]
            assert start + length <= packed.entries
            loaded: list[int] = []
            for word, kind in zip(words[:-1], kinds[:-1].tolist(), strict=True):
                if kind == codes.load:
                    assert word % 4 == 0
                    loaded = [int(word) // 4 + at for at in window.loads]
                    continue
                tap, v = divmod(kind, packed.vector)
                # Every pixel of a thread reads its own input of the same tap.
                inputs = [loaded[place] for place in window.places[tap]]
                (offset,) = {at - pixel + pixels[0] for at, pixel in zip(inputs, pixels, strict=True)}
                channel, column = address[offset]
                dense[block * packed.vector + v, chunk * tiling.channels + channel, column] += np.int32(word).view("f4")
    return dense


@quick
@given(case=cases())
def test_programs_multiply_by_the_filter(case: Case) -> None:
    workload = case.workload
    if workload.groups > 1 and workload.k_per_group % 4:
        return
    tiling = tiling_of(workload)
    packed = jump_filter(case.weight(), tiling, 4, 1)
    k, c, r, s = workload.filter_shape
    dense = carried_out(packed, tiling)
    assert not dense[k:].any() and not dense[:, c:].any()
    assert np.array_equal(dense[:k, :c].reshape(k, c, r, s), case.weight())


def test_a_window_is_loaded_once_for_all_its_nonzeros() -> None:
    tiling, weight = tiling_of(LAYER), Case(LAYER, 0.5, "channels", 1).weight()
    packed = jump_filter(weight, tiling, 8, 3)
    window = Window.of(tiling)
    # Rows of a thread follow one another: three taps of a column need two rows more than its pixels.
    assert window.a_channel == 3 and len(window.loads) == 4 + 2
    loads = int((packed.program[..., 1] == Codes(3, 8).load).sum())
    assert loads == sum((weight[first : first + 8] != 0).any(axis=(0, 2)).sum() for first in range(0, 24, 8))
    assert (packed.rows % ROW_START).sum() == loads + np.count_nonzero(weight) + 2 * packed.rows.size


@pytest.mark.parametrize(
    ("changes", "windows", "loads"),
    [
        ({}, 3, 6),
        ({"stride": (2, 2)}, 3, 9),
        ({"dilation": (2, 1), "padding": (2, 1, 2, 1)}, 3, 8),
        # Taps too far apart share nothing: every tap on its own takes fewer registers.
        ({"dilation": (4, 1), "padding": (4, 1, 4, 1)}, 9, 4),
        ({"r": 1, "s": 1, "padding": (0, 0, 0, 0)}, 1, 4),
        ({"r": 1, "s": 7, "padding": (0, 3, 0, 3)}, 7, 4),
        ({"r": 7, "s": 1, "padding": (3, 0, 3, 0)}, 1, 10),
    ],
)
def test_the_window_with_the_fewest_loads_is_taken(changes: dict, windows: int, loads: int) -> None:
    window = Window.of(tiling_of(replace(LAYER, **changes)))
    assert (window.a_channel, len(window.loads)) == (windows, loads)


def test_blocks_of_two_groups_are_refused() -> None:
    workload = ConvWorkload(1, 8, 6, 6, 24, 3, 3, groups=2)
    with pytest.raises(InputError, match=r"n1 8x6x6 -> 24 .*blocks of 8 output channels reach over two groups"):
        jump_filter(np.ones(workload.filter_shape, np.float32), tiling_of(workload), 8, 1)


def test_too_long_a_segment_is_refused() -> None:
    workload = ConvWorkload(1, 64, 6, 6, 64, 3, 3)
    with pytest.raises(InputError, match="take fewer channels a chunk"):
        jump_filter(np.ones(workload.filter_shape, np.float32), tiling_of(workload, channels=64), 8, 8)
