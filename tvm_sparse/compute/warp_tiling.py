"""How output pixels lie on the threads of a warp, and where in a GPU tile's input a filter column stands.

A warp's 32 lanes are `lanes` = (images, rows, columns) neighbouring output pixels of one output channel; a thread
holds `pixels` = (images, rows, columns) of them, a whole warp's extent apart, or with `adjacent` rows that follow one
another, whose windows overlap. So a tile has lanes x pixels output pixels along every axis, and lanes need not be
wasted on 7 or 14 columns: a warp may lie across images.

The tile's input, for one chunk of channels, is one flat buffer with

    input element of (filter column, pixel) = buffer[offset(column) + pixel_address(index)]

It is made for two readers. The warps that sum want their 32 lanes in 32 different memory banks: pixels stand one
element apart whatever the stride (a strided axis is stored phase by phase: all positions that are 0 modulo the stride,
then 1, ..., as far as the kernel's taps use them), and row and image strides are padded. The threads that copy want the
widest copies that the input's alignment allows: a row starts with a margin that keeps its true columns aligned, so that
`copy_width` neighbouring elements are all inside the input or all outside. The whole planes of a pointwise convolution
are copied as one run, whatever their size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from tvm_sparse.compute.axis import Axis
from tvm_sparse.compute.banks import BANKS, WARP, Extents, busiest, least_conflicts
from tvm_sparse.compute.geometry import Source, even_chunks
from tvm_sparse.errors import InputError
from tvm_sparse.workload import ELEMENT_BYTES, ConvWorkload

#: Rows of a tile may be widened by this factor where that keeps its pixels in different banks.
WIDEST_PITCH = 1.3

#: TVM 0.27 forgets to place a shared buffer of 4 bytes or less: two of these, or one word and another, are more.
FEWEST_ELEMENTS = 2


@dataclass(frozen=True)
class WarpTiling:
    """Tiles of lanes x pixels output pixels, (images, rows, columns) each, and `channels` input channels a chunk.

    `splits` cuts the chunks of a row into that many independent partial sums (see direct_conv2d). A thread's rows lie
    next to each other if `adjacent`.

    Raises
    ------
    InputError
        When the lanes are not 32, or a size is less than 1.
    """

    workload: ConvWorkload = field(repr=False)
    lanes: Extents
    pixels: Extents
    channels: int
    splits: int = 1
    adjacent: bool = False

    def __post_init__(self) -> None:
        if math.prod(self.lanes) != WARP:
            raise InputError(f"{self}: the lanes of a warp are {WARP}")
        if min(*self.lanes, *self.pixels, self.channels, self.splits) < 1:
            raise InputError(f"{self}: every size is 1 or more")

    @property
    def chunks(self) -> int:
        return even_chunks(self.workload, self.channels, self.splits)

    @property
    def images(self) -> int:
        return self.lanes[0] * self.pixels[0]

    @property
    def rows(self) -> int:
        return self.lanes[1] * self.pixels[1]

    @property
    def cols(self) -> int:
        return self.lanes[2] * self.pixels[2]

    @property
    def grid(self) -> Extents:
        """Tiles along images, rows and columns of the output."""
        workload = self.workload
        return -(-workload.n // self.images), -(-workload.p // self.rows), -(-workload.q // self.cols)

    @property
    def pixel_shape(self) -> tuple[int, int]:
        """Pixels of a thread, lanes."""
        return math.prod(self.pixels), WARP

    @cached_property
    def whole_planes(self) -> bool:
        """A pointwise convolution whose tile covers every pixel of its images: their planes are one run each."""
        workload = self.workload
        return workload.pointwise and workload.p == 1 and self.cols >= workload.q

    @cached_property
    def copy_width(self) -> int:
        """Neighbouring elements that one copy moves: 16, 8 or 4 bytes, or a single element."""
        workload, size = self.workload, ELEMENT_BYTES[self.workload.dtype]
        if self.whole_planes:
            runs: tuple[int, ...] = (self.channels * workload.q, workload.c_per_group * workload.q)
        elif workload.stride[1] == 1:
            runs = (workload.w, self.cols if self.cols < workload.q else 0)
        else:
            runs = (1,)
        return next((n // size for n in (16, 8, 4) if all(run % (n // size) == 0 for run in runs)), 1)

    @cached_property
    def row_axis(self) -> Axis:
        workload = self.workload
        return Axis(workload.p, self.rows, workload.r, workload.stride[0], workload.dilation[0])

    @cached_property
    def col_axis(self) -> Axis:
        workload = self.workload
        return Axis(
            workload.q,
            self.cols,
            workload.s,
            workload.stride[1],
            workload.dilation[1],
            -workload.padding[1] % self.copy_width,
        )

    @property
    def _last(self) -> list[int]:
        """The last image, row and column that a thread reads."""
        sizes = (self.workload.n, self.workload.p, self.workload.q)
        return [
            min(lanes, size) - 1 if own == 1 else own * lanes - 1
            for own, lanes, size in zip(self.pixels, self.lanes, sizes, strict=True)
        ]

    @cached_property
    def _strides(self) -> tuple[int, int]:
        """Elements from row to row and from image to image: the least that spread a warp over all banks."""
        width, step = self.copy_width, self.copy_width
        if self.whole_planes:
            # Threads of rows beyond the only one read on, too.
            reach = (self.channels - 1 + self._last[1]) * self.workload.q + self._last[2] + 1
            plane = -(-max(reach, FEWEST_ELEMENTS) // width) * width
            options = [(self.workload.q, plane + pad) for pad in range(0, BANKS if self.lanes[0] > 1 else 1, step)]
        else:
            narrow, height = -(-self.col_axis.size // width) * width, self.row_axis.size
            overlapping = -(-(self.col_axis.size - self._overlap) // width) * width
            several = self.lanes[1] > 1 or self.lanes[0] > 1
            pitches = range(overlapping, int(narrow * WIDEST_PITCH) + 1 if several else narrow + 1, step)
            pads = range(0, BANKS if self.lanes[0] > 1 else 1, step)
            options = [(pitch, height * pitch + pad) for pitch in pitches for pad in pads]
        size = ELEMENT_BYTES[self.workload.dtype]
        return least_conflicts(self.lanes, self._limits, tuple(options), size, self._row_step)

    @property
    def _overlap(self) -> int:
        """Columns at the end of a row that may lie on the first ones of the next row: both are in the padding."""
        workload, axis = self.workload, self.col_axis
        if workload.stride[1] > 1 or self.cols < workload.q or (self.copy_width > 1 and workload.w % self.copy_width):
            return 0
        before = axis.margin + workload.padding[1]
        return max(0, min(before, axis.size - before - workload.w))

    @property
    def pitch(self) -> int:
        return self._strides[0]

    @property
    def image_stride(self) -> int:
        return self._strides[1]

    @cached_property
    def conflicts(self) -> int:
        """Loads of the busiest memory bank when a warp reads its pixels."""
        size = ELEMENT_BYTES[self.workload.dtype]
        return busiest(self.lanes, self._limits, self._strides, size, self._row_step)

    @property
    def _row_step(self) -> int:
        """Output rows from one row of lanes to the next."""
        return self.pixels[1] if self.adjacent else 1

    @cached_property
    def channel_stride(self) -> int:
        """Elements from channel to channel; pixels beyond the output read no further."""
        workload, width = self.workload, self.copy_width
        if self.whole_planes:
            return workload.q
        last = self._last
        taps = max(int(self._tap(tap)) for tap in range(workload.r * workload.s))
        reach = last[0] * self.image_stride + last[1] * self.pitch + last[2] + taps
        images = min(self.images, workload.n) * self.image_stride
        least = FEWEST_ELEMENTS if self.channels == 1 else 1
        return max(images, -(-max(reach + 1, least) // width) * width)

    @property
    def copy_shape(self) -> tuple[int, int]:
        """The buffer as (runs, elements of a run): copies at the same place of two runs differ by a constant."""
        return (self.images, self.image_stride) if self.whole_planes else (self.channels, self.channel_stride)

    @cached_property
    def elements(self) -> int:
        """Elements of the buffer of one tile and chunk."""
        runs, length = self.copy_shape
        return runs * length

    def _tap(self, tap: Any) -> Any:
        s = self.workload.s
        return self.row_axis.position(tap // s) * self.pitch + self.col_axis.position(tap % s)

    @cached_property
    def _limits(self) -> Extents:
        """The last image, row and column of a lane.

        Where a thread has one pixel along an axis, a lane beyond the output reads what its neighbour reads, which costs
        nothing; elsewhere it reads what follows.
        """
        sizes = (self.workload.n, self.workload.p, self.workload.q)
        axes = zip(self.pixels, self.lanes, sizes, strict=True)
        image, row, col = (min(lanes, size) - 1 if own == 1 else lanes - 1 for own, lanes, size in axes)
        return image, row, col

    def _lane(self, lane: Any, least: Any = min) -> list[Any]:
        """(image, row, column) of a lane."""
        _, rows, cols = self.lanes
        place = [lane // (rows * cols), lane // cols % rows, lane % cols]
        return [
            least(at, limit) if limit < lanes - 1 else at
            for at, limit, lanes in zip(place, self._limits, self.lanes, strict=True)
        ]

    def offsets(self, columns: NDArray[np.int32]) -> NDArray[np.int32]:
        """Stretched offsets, in elements, of filter columns c·r·s + r·s + s (c counted in the group)."""
        taps = self.workload.r * self.workload.s
        return (columns // taps % self.channels * self.channel_stride + self._tap(columns % taps)).astype(np.int32)

    def pixel_address(self, index: tuple[Any, Any]) -> Any:
        """Offset, in elements, of a pixel of the tile: an integer or a TVM expression."""
        own, lane = index
        (images, rows, cols), (_, own_rows, own_cols) = self.lanes, self.pixels
        image, row, col = self._lane(lane, min if isinstance(lane, int) else tirx.min)
        image = own // (own_rows * own_cols) * images + image
        own_row = own // own_cols % own_rows
        row = row * own_rows + own_row if self.adjacent else own_row * rows + row
        return image * self.image_stride + row * self.pitch + own % own_cols * cols + col

    def pixel_index(self, n: Any, p: Any, q: Any) -> tuple[Any, Any]:
        """Where output pixel (n, p, q) stands in the pixel dimensions of a partial sum of its tile."""
        (images, rows, cols), (_, own_rows, own_cols) = self.lanes, self.pixels
        row = p % self.rows
        own_row, row = (row % own_rows, row // own_rows) if self.adjacent else (row // rows, row % rows)
        own = (n % self.images // images * own_rows + own_row) * own_cols + q % self.cols // cols
        return own, (n % images * rows + row) * cols + q % cols

    def source(self, copy: Any, element: Any, chunk: Any, image_tile: Any, tile_row: Any, tile_col: Any) -> Source:
        """Where in the input buffer element copy·copy_width + element comes from."""
        workload, width = self.workload, self.copy_width
        inside: list[Any] = []
        if self.whole_planes:
            image, copy = copy // (self.image_stride // width), copy % (self.image_stride // width)
            copy += chunk * (self.channels * workload.q // width)
            run = self.chunks * self.channels * workload.q
            if run > workload.c_per_group * workload.q or self.image_stride > self.channels * workload.q:
                inside.append(copy < workload.c_per_group * workload.q // width)
            e = copy * width + element
            channel, row, col = e // workload.q, 0, e % workload.q
        else:
            top, left, _, _ = workload.padding
            channel, copy = copy // (self.channel_stride // width), copy % (self.channel_stride // width)
            image, copy = copy // (self.image_stride // width), copy % (self.image_stride // width)
            row, copy = copy // (self.pitch // width), copy % (self.pitch // width)
            row = tile_row * (self.rows * workload.stride[0]) + self.row_axis.source(row) - top
            if width == 1:
                copy = tile_col * (self.cols * workload.stride[1]) + self.col_axis.source(copy) - left
            else:
                copy += tile_col * (self.cols // width) - (left + self.col_axis.margin) // width
            channel += chunk * self.channels
            col = copy * width + element
            inside += [row >= 0, row < workload.h, copy >= 0, copy < workload.w // width]
            if self.chunks * self.channels > workload.c_per_group:
                inside.append(channel < workload.c_per_group)
        images = min(self.images, workload.n)
        if not self.whole_planes and self.channel_stride > images * self.image_stride:
            inside.append(image < images)
        image += image_tile * self.images
        if self.grid[0] * self.images > workload.n:
            inside.append(image < workload.n)
        return Source(image, channel, row, col, inside)
