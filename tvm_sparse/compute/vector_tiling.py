"""Tiles for a CPU: pixels of a tile stand next to each other, so that a vector of them is one load.

The buffer of a tile's input (see geometry.py) holds shifted copies, in one of two layouts:

- "columns": one copy per kernel column s, shifted by it, without halo columns. For a row stride of 1 the pixels of a
  tile are then consecutive for every filter column, so vector loads are aligned.
- "taps": one copy per kernel element (r, s). Consecutive pixels for any stride.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_sparse.compute.geometry import Source, even_chunks
from tvm_sparse.errors import InputError
from tvm_sparse.workload import ConvWorkload

LAYOUTS = ("columns", "taps")


@dataclass(frozen=True)
class VectorTiling:
    """Tiles of `rows` x `cols` output pixels of one image, `channels` input channels a chunk.

    `splits` cuts the chunks of a row into that many independent partial sums (see direct_conv2d).
    """

    workload: ConvWorkload = field(repr=False)
    rows: int
    cols: int
    channels: int
    layout: str = "taps"
    splits: int = 1

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise InputError(f"unknown tile layout {self.layout!r}: choose one of {', '.join(LAYOUTS)}")
        if min(self.rows, self.cols, self.channels, self.splits) < 1:
            raise InputError(f"{self}: every size is 1 or more")

    @property
    def chunks(self) -> int:
        return even_chunks(self.workload, self.channels, self.splits)

    @property
    def images(self) -> int:
        return 1

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tiles along images, rows and columns of the output."""
        return self.workload.n, -(-self.workload.p // self.rows), -(-self.workload.q // self.cols)

    @property
    def pixel_shape(self) -> tuple[int]:
        """The pixels of a tile, row by row."""
        return (self.rows * self.cols,)

    @property
    def in_rows(self) -> int:
        """Buffer rows of one channel and copy."""
        if self.layout == "taps":
            return self.rows
        workload = self.workload
        return (self.rows - 1) * workload.stride[0] + (workload.r - 1) * workload.dilation[0] + 1

    @property
    def copies(self) -> int:
        return self.workload.s * (self.workload.r if self.layout == "taps" else 1)

    @property
    def elements(self) -> int:
        """Elements of the buffer of one tile and chunk."""
        return self.channels * self.copies * self.in_rows * self.cols

    def offsets(self, columns: NDArray[np.int32]) -> NDArray[np.int32]:
        """Stretched offsets, in elements, of filter columns c·r·s + r·s + s (c counted in the group)."""
        workload = self.workload
        tap = columns % (workload.r * workload.s)
        c, r, s = columns // (workload.r * workload.s) % self.channels, tap // workload.s, tap % workload.s
        copy, row = (tap, 0 * r) if self.layout == "taps" else (s, r * workload.dilation[0])
        return (((c * self.copies + copy) * self.in_rows + row) * self.cols).astype(np.int32)

    def pixel_address(self, index: tuple[Any, ...]) -> Any:
        """Offset, in elements, of pixel f of the tile: an integer or a TVM expression."""
        (f,) = index
        if self.layout == "taps" or self.workload.stride[0] == 1:
            return f
        return f // self.cols * (self.workload.stride[0] * self.cols) + f % self.cols

    def pixel_index(self, n: Any, p: Any, q: Any) -> tuple[Any]:
        """Where output pixel (n, p, q) stands in the pixel dimension of a partial sum of its tile."""
        return (p % self.rows * self.cols + q % self.cols,)

    @property
    def copy_width(self) -> int:
        return 1

    def source(self, copy: Any, element: Any, chunk: Any, image_tile: Any, tile_row: Any, tile_col: Any) -> Source:
        """Where in the input buffer element `copy` comes from (`element` is 0)."""
        workload, e = self.workload, copy
        col = e % self.cols
        row = e // self.cols % self.in_rows
        copy = e // (self.cols * self.in_rows) % self.copies
        channel = chunk * self.channels + e // (self.cols * self.in_rows * self.copies)
        (stride_h, stride_w), (dilation_h, dilation_w) = workload.stride, workload.dilation
        if self.layout == "taps":
            row, copy = row * stride_h + copy // workload.s * dilation_h, copy % workload.s
        top, left, _, _ = workload.padding
        row = tile_row * (self.rows * stride_h) + row - top
        col = tile_col * (self.cols * stride_w) + col * stride_w + copy * dilation_w - left
        inside = [row >= 0, row < workload.h, col >= 0, col < workload.w]
        if self.chunks * self.channels > workload.c_per_group:
            inside.append(channel < workload.c_per_group)
        return Source(image_tile, channel, row, col, inside)
