"""Which thread copies what, where images that are paired in shared memory are copied as they lie in memory.

A tile's input is a run of whole rows of every plane. The elements of a run, or of as many whole planes as make copies
of four, are dealt out to neighbouring threads; further planes and images go to further threads, and then to the same
ones again, a constant further on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm_sparse.compute.pair_tiling import PAIR, PairTiling
from tvm_sparse.compute.warp_tiling import Axis

#: Elements of a copy of one image: 8 bytes.
WIDTH = 4
#: Copies of a thread and chunk, at most: they wait in registers.
MOST_STEPS = 16


@dataclass(frozen=True)
class PlaneCopies:
    """`steps` copies of each thread: of `units` at once, each `rows` rows of `planes` planes in `items` copies."""

    tiling: PairTiling
    rows: int
    planes: int
    items: int
    units: int
    steps: int

    @property
    def whole(self) -> bool:
        """Whether a tile holds whole planes: there are no rows around them to look for."""
        return self.tiling.grid[1] == 1

    @property
    def run(self) -> int:
        """Words that are neighbours in the tile, too."""
        words = self.tiling.words
        workload, strides = self.tiling.workload, (words.pitch, words.image_stride, words.channel_stride)
        first = words.col_axis.margin + workload.padding[1]
        even = all(number % PAIR == 0 for number in (workload.w, first, *strides))
        return PAIR if even and workload.stride[1] == 1 else 1

    def place(self, thread: Any, step: int) -> tuple[Any, Any, Any, Any]:
        """What a thread copies: (condition, pair of images in the tile, channel in the chunk, first element)."""
        unit, item = thread // self.items, thread % self.items
        images = self.tiling.words.images
        if self.units >= images:
            image, several = unit % images, unit // images + step * (self.units // images)
        else:
            image, several = unit + step * self.units % images, step * self.units // images
        left = images * self.tiling.channels // self.planes - step * self.units
        return unit < min(self.units, left), image, several * self.planes, item * WIDTH

    def first_row(self, tile_row: Any) -> Any:
        """The input row of the first one that is copied; above the image if it is negative."""
        workload = self.tiling.workload
        return 0 if self.whole else tile_row * (self.tiling.rows * workload.stride[0]) - workload.padding[0]

    def source(self, element: Any) -> tuple[Any, Any, Any]:
        """(channel, row from the first, column) of an element of a unit."""
        width = self.tiling.workload.w
        return element // (self.rows * width), element % (self.rows * width) // width, element % width

    def word(self, image: Any, channel: Any, element: Any) -> Any:
        """Where an element of the planes from `channel` on stands in the tile."""
        words, (top, left, _, _) = self.tiling.words, self.tiling.workload.padding
        plane, row, col = self.source(element)
        row = words.row_axis.place(row + top if self.whole else row)
        col = words.col_axis.place(col + left)
        return (channel + plane) * words.channel_stride + image * words.image_stride + row * words.pitch + col


def plane_copies(tiling: PairTiling, threads: int) -> PlaneCopies | None:
    """How so many threads copy a tile as it lies in memory; None if it has no whole rows, or is too odd for it."""
    workload, words = tiling.workload, tiling.words
    if tiling.axis != "images" or words.whole_planes or words.grid[2] > 1 or workload.n % (PAIR * words.images):
        return None
    rows, planes = workload.h, math.lcm(workload.h * workload.w, WIDTH) // (workload.h * workload.w)
    if words.grid[1] > 1:
        axis = words.row_axis
        rows, planes = (axis.tile - 1) * axis.stride + (axis.taps - 1) * axis.dilation + 1, 1
        if workload.w % WIDTH or axis.phases != axis.stride:
            return None
    elif not _holds(words.row_axis, workload.h + workload.padding[0]):
        return None
    items = planes * rows * workload.w // WIDTH
    if items > threads or workload.c_per_group % planes or tiling.channels % planes:
        return None
    if not _holds(words.col_axis, workload.w + workload.padding[1]):
        return None
    units = threads // items
    if units >= words.images:
        units -= units % words.images
    else:
        units = next(u for u in range(units, 0, -1) if words.images % u == 0)
    steps = -(-words.images * tiling.channels // planes // units)
    return PlaneCopies(tiling, rows, planes, items, units, steps) if steps <= MOST_STEPS else None


def _holds(axis: Axis, end: int) -> bool:
    """Whether every position in front of `end` has a place of its own in the tile."""
    return axis.phases == axis.stride and (end - 1) // axis.stride < axis.span
