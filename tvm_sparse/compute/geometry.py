"""How output pixels are cut into tiles, and where in a tile's input a filter column stands: the stretched offset.

A tile is `rows` x `cols` output pixels. Its input, for one chunk of channels, is one flat buffer, so that

    input element of (filter column, pixel f) = buffer[offset(column) + pixel(f)]        f = row * cols + col

with `offset` known from the filter alone and `pixel` from the geometry alone (Escoin, arXiv 1802.10280, section 3.2:
"stretched" weights). Three layouts of the buffer:

- "halo": the input rows and columns that the tile's true pixels need, once. Least memory; pixels are `stride` apart.
  Pixels of the tile beyond the output read whatever follows, inside the buffer; nobody stores them.
- "columns": one copy per kernel column s, shifted by it, without halo columns. For a row stride of 1 the pixels of a
  tile are then consecutive for every filter column, so vector loads are aligned.
- "taps": one copy per kernel element (r, s). Consecutive pixels for any stride.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_sparse.errors import InputError
from tvm_sparse.workload import ConvWorkload

LAYOUTS = ("halo", "columns", "taps")


@dataclass(frozen=True)
class Tiling:
    """Tiles of `rows` x `cols` output pixels, `channels` input channels a chunk.

    `splits` cuts the chunks of a row into that many independent partial sums (see direct_conv2d). `pitch` is the least
    distance of two buffer rows in the layout "halo", in elements: it can keep pixels in different memory banks.
    `lanes`, if not 0, makes two dimensions of the pixels of a partial sum: (f // lanes, f % lanes).
    """

    workload: ConvWorkload = field(repr=False)
    rows: int
    cols: int
    channels: int
    layout: str = "halo"
    splits: int = 1
    pitch: int = 1
    lanes: int = 0

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise InputError(f"unknown tile layout {self.layout!r}: choose one of {', '.join(LAYOUTS)}")
        if min(self.rows, self.cols, self.channels, self.splits, self.pitch) < 1:
            raise InputError(f"{self}: every size is 1 or more")
        if self.lanes and (self.pixels % self.lanes or (self.cols % self.lanes and self.lanes % self.cols)):
            raise InputError(f"{self}: pixels in rows of {self.cols} do not lie evenly on {self.lanes} lanes")

    @property
    def chunks(self) -> int:
        """Chunks of channels, rounded up so that every split has equally many."""
        needed = -(-self.workload.c_per_group // self.channels)
        return -(-needed // self.splits) * self.splits

    @property
    def grid(self) -> tuple[int, int]:
        """Tiles along rows and columns of the output."""
        return -(-self.workload.p // self.rows), -(-self.workload.q // self.cols)

    @property
    def pixels(self) -> int:
        return self.rows * self.cols

    def pixel_index(self, p: Any, q: Any) -> tuple[Any, ...]:
        """Where output pixel (p, q) stands in the pixel dimensions of a partial sum of its tile."""
        if not self.lanes:
            return (p % self.rows * self.cols + q % self.cols,)
        # (f // lanes, f % lanes) in the form whose bounds s_tir can see.
        if self.cols > self.lanes:
            return p % self.rows * (self.cols // self.lanes) + q % self.cols // self.lanes, q % self.lanes
        together = self.lanes // self.cols
        return p % self.rows // together, p % together * self.cols + q % self.cols

    def flat_pixel(self, index: tuple[Any, ...]) -> Any:
        """The inverse of `pixel_index`."""
        return index[0] * self.lanes + index[1] if self.lanes else index[0]

    @property
    def in_rows(self) -> int:
        """Buffer rows of one channel and copy."""
        workload = self.workload
        if self.layout == "taps":
            return self.rows
        rows = min(self.rows, workload.p) if self.layout == "halo" else self.rows
        return (rows - 1) * workload.stride[0] + (workload.r - 1) * workload.dilation[0] + 1

    @property
    def in_cols(self) -> int:
        """Buffer columns of one channel and copy."""
        workload = self.workload
        if self.layout != "halo":
            return self.cols
        needed = (min(self.cols, workload.q) - 1) * workload.stride[1] + (workload.s - 1) * workload.dilation[1] + 1
        return max(needed, self.pitch)

    @property
    def overrun(self) -> int:
        """Buffer elements behind the last channel, for pixels beyond the output."""
        if self.layout != "halo":
            return 0
        workload = self.workload
        rows, cols = max(0, self.rows - workload.p), max(0, self.cols - workload.q)
        return rows * workload.stride[0] * self.in_cols + cols * workload.stride[1]

    @property
    def copies(self) -> int:
        workload = self.workload
        return {"halo": 1, "columns": workload.s, "taps": workload.r * workload.s}[self.layout]

    @property
    def elements(self) -> int:
        """Elements of the buffer of one tile and chunk."""
        return self.channels * self.copies * self.in_rows * self.in_cols + self.overrun

    @property
    def consecutive(self) -> bool:
        """Pixel f stands at offset f, so vectors of pixels are contiguous even across rows."""
        return self.layout == "taps" or (self.layout == "columns" and self.workload.stride[0] == 1)

    def offsets(self, columns: NDArray[np.int32]) -> NDArray[np.int32]:
        """Stretched offsets, in elements, of filter columns c·r·s + r·s + s (c counted in the group)."""
        workload = self.workload
        tap = columns % (workload.r * workload.s)
        c, r, s = columns // (workload.r * workload.s) % self.channels, tap // workload.s, tap % workload.s
        if self.layout == "taps":
            copy, row, col = tap, 0 * r, 0 * s
        elif self.layout == "columns":
            copy, row, col = s, r * workload.dilation[0], 0 * s
        else:
            copy, row, col = 0 * tap, r * workload.dilation[0], s * workload.dilation[1]
        plane = (c * self.copies + copy) * self.in_rows + row
        return (plane * self.in_cols + col).astype(np.int32)

    def pixel(self, f: Any) -> Any:
        """Offset, in elements, of pixel f of the tile: an integer or a TVM expression."""
        if self.consecutive:
            return f
        row_step, col_step = self.workload.stride
        if self.layout == "columns":
            col_step = 1
        return f // self.cols * (row_step * self.in_cols) + f % self.cols * col_step

    def source(self, e: Any, tile_row: Any, tile_col: Any) -> tuple[Any, Any, Any]:
        """(channel in the chunk, input row, input column) of buffer element e; the last two may lie in the padding."""
        workload = self.workload
        col = e % self.in_cols
        row = e // self.in_cols % self.in_rows
        copy = e // (self.in_cols * self.in_rows) % self.copies
        channel = e // (self.in_cols * self.in_rows * self.copies)
        (stride_h, stride_w), (dilation_h, dilation_w) = workload.stride, workload.dilation
        if self.layout == "taps":
            row, col = row * stride_h + copy // workload.s * dilation_h, col * stride_w + copy % workload.s * dilation_w
        elif self.layout == "columns":
            col = col * stride_w + copy * dilation_w
        top, left, _, _ = workload.padding
        return (
            channel,
            tile_row * (self.rows * stride_h) + row - top,
            tile_col * (self.cols * stride_w) + col - left,
        )
