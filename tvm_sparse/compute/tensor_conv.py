"""Dense 16-bit convolution with few input channels for tensor cores, as one tensor expression.

    x      (n, c, h, w)                              input
    filter (step, mt, lane, 8)                       weights as the lanes of a warp hold them: see `tensor_filter`
    tile   (n, ty, tx, copy, width)                  the padded input of a tile, all channels, as it lies
    part   (n, ty, tx, mt, row, nt, lane, half, e)   Σ over steps of 16 columns of the filter
    out    (n, k, p, q)                              activation(part + bias + residual)

An instruction multiplies 16 output channels x 16 columns by 16 columns x 8 pixels of a row. Columns (c, r, s) come in
pairs of neighbouring s: with an even column stride a pair is an aligned word of the tile, whatever the pixel, so that
nothing is rearranged. `front` columns of zeros in front of the kernel's own keep the copies aligned, too.

The last four of part are the registers of a warp: lane = 4 · (channel % 8) + pixel % 8 // 2, half = channel % 16 // 8,
e = pixel % 2 (mma.m16n8k16 in NVIDIA's PTX ISA).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx

from tvm_sparse.compute.dense_conv import DenseFilter
from tvm_sparse.compute.direct_conv import DirectConv
from tvm_sparse.compute.epilogue import output_stage
from tvm_sparse.compute.warp_tiling import WARP, Extents
from tvm_sparse.workload import ConvWorkload

#: Output channels, pixels and columns of an instruction; columns that stand together.
M, N, K, PAIR = 16, 8, 16, 2
#: Widths of copies, in elements.
WIDTHS = (4, 2)


@dataclass(frozen=True)
class TensorTiling:
    """Tiles of one image, `rows` x `cols` output pixels; `cols` is a multiple of 8."""

    workload: ConvWorkload = field(repr=False)
    rows: int
    cols: int

    @cached_property
    def copy_width(self) -> int:
        """Neighbouring elements of a row that are copied at once: as many as leave fewest columns in front."""
        fitting = [width for width in WIDTHS if self.workload.w % width == 0]
        return min(fitting, key=self._pairs)

    @property
    def front(self) -> int:
        return -self.workload.padding[1] % self.copy_width

    def _pairs(self, width: int) -> int:
        return -(-(-self.workload.padding[1] % width + self.workload.s) // PAIR)

    @property
    def pairs(self) -> int:
        """Pairs of columns of a row of the kernel."""
        return self._pairs(self.copy_width)

    @property
    def all_pairs(self) -> int:
        return self.workload.c * self.workload.r * self.pairs

    @property
    def steps(self) -> int:
        return -(-self.all_pairs * PAIR // K)

    @property
    def channel_tiles(self) -> int:
        return -(-self.workload.k // M)

    @property
    def grid(self) -> Extents:
        """Tiles along images, rows and columns of the output."""
        return self.workload.n, -(-self.workload.p // self.rows), -(-self.workload.q // self.cols)

    @property
    def tile_rows(self) -> int:
        workload = self.workload
        return (self.rows - 1) * workload.stride[0] + (workload.r - 1) * workload.dilation[0] + 1

    @property
    def pitch(self) -> int:
        """Elements of a row of the tile."""
        needed = (self.cols - 1) * self.workload.stride[1] + self.pairs * PAIR
        return -(-needed // self.copy_width) * self.copy_width

    @property
    def elements(self) -> int:
        return self.workload.c * self.tile_rows * self.pitch

    def address(self, pair: Any, row: Any, col: Any) -> Any:
        """Where the first element of a pair of columns stands for a pixel of the tile."""
        workload, pairs = self.workload, self.pairs
        pair = tirx.min(pair, tirx.const(self.all_pairs - 1, "int32"))  # the weights of more are zero
        channel, kernel_row = pair // (workload.r * pairs), pair // pairs % workload.r
        at = channel * self.tile_rows + kernel_row * workload.dilation[0] + row * workload.stride[0]
        return at * self.pitch + col * workload.stride[1] + pair % pairs * PAIR


def tensor_filter(weight: NDArray, tiling: TensorTiling) -> DenseFilter:
    """Lay a filter (k, c, r, s) out in registers of warps: values (steps, channels / 16, 32 lanes, 8), zero beyond it.

    Element 4 · (column % 16 // 8) + 2 · (channel % 16 // 8) + column % 2 of lane 4 · (channel % 8) + column % 8 // 2.
    """
    k, s = len(weight), weight.shape[3]
    behind = tiling.pairs * PAIR - tiling.front - s
    padded = np.pad(weight, ((0, -k % M), (0, 0), (0, 0), (tiling.front, behind))).reshape(-(-k // M) * M, -1)
    padded = np.pad(padded, ((0, 0), (0, tiling.steps * K - padded.shape[1])))
    cut = padded.reshape(tiling.channel_tiles, 2, M // 2, tiling.steps, 2, K // 4, PAIR)
    laid = cut.transpose(3, 0, 2, 5, 4, 1, 6).reshape(tiling.steps, tiling.channel_tiles, WARP, K // 2)
    return DenseFilter(np.ascontiguousarray(laid, tiling.workload.dtype))


def tensor_conv2d(tiling: TensorTiling) -> DirectConv:
    """Convolution of `tiling.workload` with a filter laid out by `tensor_filter`."""
    workload, width, dtype = tiling.workload, tiling.copy_width, tiling.workload.dtype
    n, grid_rows, grid_cols = tiling.grid
    x = te.placeholder((n, workload.c, workload.h, workload.w), dtype, name="x")
    weights = te.placeholder((tiling.steps, tiling.channel_tiles, WARP, K // 2), dtype, name="filter")
    copies = tiling.pitch // width
    top, left, _, _ = workload.padding

    def read_input(i: Any, ty: Any, tx: Any, copy: Any, element: Any) -> Any:
        row = ty * (tiling.rows * workload.stride[0]) + copy // copies % tiling.tile_rows - top
        place = tx * (tiling.cols * workload.stride[1] // width) + copy % copies - (left + tiling.front) // width
        value = x[i, copy // copies // tiling.tile_rows, row, place * width + element]
        inside = [row >= 0, row < workload.h, place >= 0, place < workload.w // width]
        return tirx.if_then_else(tirx.all(*inside), value, tirx.const(0, dtype))

    tile = te.compute((n, grid_rows, grid_cols, tiling.elements // width, width), read_input, name="tile")
    step, column = te.reduce_axis((0, tiling.steps), name="step"), te.reduce_axis((0, K), name="column")

    def product(i: Any, ty: Any, tx: Any, mt: Any, row: Any, nt: Any, lane: Any, half: Any, e: Any) -> Any:
        at = tiling.address(step * (K // PAIR) + column // PAIR, row, nt * N + lane % 4 * 2 + e) + column % PAIR
        held = column // 8 * 4 + half * 2 + column % PAIR
        weight = weights[step, mt, lane // 4 * 4 + column % 8 // PAIR, held]
        term = weight.astype("float32") * tile[i, ty, tx, at // width, at % width].astype("float32")
        return te.sum(term, axis=[step, column])

    shape = (n, grid_rows, grid_cols, tiling.channel_tiles, tiling.rows, tiling.cols // N, WARP, 2, 2)
    part = te.compute(shape, product, name="part")

    def summed(i: Any, k: Any, p: Any, q: Any) -> Any:
        tile_at = (i, p // tiling.rows, q // tiling.cols, k // M, p % tiling.rows, q % tiling.cols // N)
        return part[(*tile_at, k % 8 * 4 + q % N // 2, k % M // 8, q % 2)]

    return DirectConv([x, weights, *output_stage(workload, summed)])
