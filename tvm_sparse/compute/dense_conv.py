"""Dense convolution over the tiles of a WarpTiling, as one tensor expression.

    x      (n, c, h, w)                        input
    filter (chunk, segment, c, r, s, row, 4)   weights in the order in which blocks of threads copy them: a segment is
                                               the output channels of a block, four a row, a chunk some input channels
    tile   (tn, g, ty, tx, chunk, e)           input of one tile and chunk: see direct_conv
    part   (tn, split, kb, v, ty, tx, own, lane)   Σ over the chunks of a split and c, r, s
    sum    (tn, kb, v, ty, tx, own, lane)      Σ over the splits
    out    (n, k, p, q)                        activation(sum + bias + residual)

A row block kb is the `vector` output channels of a warp. It is direct_conv without offsets: every column is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx

from tvm_sparse.compute.direct_conv import DirectConv
from tvm_sparse.compute.epilogue import output_stage
from tvm_sparse.compute.warp_tiling import WarpTiling

#: Weights of a load.
WIDTH = 4


@dataclass(frozen=True)
class DenseFilter:
    """All weights as a kernel wants them (by `dense_filter`, or `tensor_filter` of tensor_conv), zero beyond them."""

    values: NDArray[np.floating]

    @property
    def arrays(self) -> tuple[NDArray, ...]:
        """In the order in which the kernel takes them, behind x."""
        return (self.values,)

    @property
    def nbytes(self) -> int:
        return self.values.nbytes


def dense_filter(weight: NDArray, tiling: WarpTiling, rows: int) -> DenseFilter:
    """Lay a filter (k, c/groups, r, s) out in chunks of the tiling and segments of `rows` output channels.

    Values are (chunks, segments, channels, r, s, rows / 4, 4). `rows` is a multiple of 4 and, with several groups,
    divides k/groups.
    """
    k, c, r, s = weight.shape
    padded = np.pad(weight, ((0, -k % rows), (0, tiling.chunks * tiling.channels - c), (0, 0), (0, 0)))
    cut = padded.reshape(-1, rows, tiling.chunks, tiling.channels, r, s)
    laid = cut.transpose(2, 0, 3, 4, 5, 1).reshape(tiling.chunks, -1, tiling.channels, r, s, rows // WIDTH, WIDTH)
    return DenseFilter(np.ascontiguousarray(laid, tiling.workload.dtype))


def _phase_by_phase(tap: Any, taps: int, stride: int) -> Any:
    """The tap that comes at place `tap`: 0, stride, 2·stride, ..., then 1, stride + 1, ...

    Adjacent rows share inputs between taps of the same phase only: so few of them are wanted at a time. In order where
    more than one phase is short.
    """
    each = -(-taps // stride)
    return tap if each * stride - taps > 1 else tap % each * stride + tap // each


def dense_conv2d(tiling: WarpTiling, packed: DenseFilter, vector: int) -> DirectConv:
    """Convolution of `tiling.workload` with a filter laid out like `packed`, `vector` output channels a row block."""
    workload, width = tiling.workload, tiling.copy_width
    n, dtype, groups = workload.n, workload.dtype, workload.groups
    _, segments, channels, r, s, quads, _ = packed.values.shape
    rows = quads * WIDTH
    image_tiles, grid_rows, grid_cols = tiling.grid
    blocks = segments * rows // vector
    x = te.placeholder((n, workload.c, workload.h, workload.w), dtype, name="x")
    weights = te.placeholder(packed.values.shape, dtype, name="filter")

    def read_input(tn: Any, g: Any, ty: Any, tx: Any, chunk: Any, *e: Any) -> Any:
        image, channel, row, col, inside = tiling.source(e[0], e[1] if width > 1 else 0, chunk, tn, ty, tx)
        element = x[image, g * workload.c_per_group + channel, row, col]
        return tirx.if_then_else(tirx.all(*inside), element, tirx.const(0, dtype)) if inside else element

    in_tile = (tiling.elements // width, width) if width > 1 else (tiling.elements,)
    tiles = (image_tiles, groups, grid_rows, grid_cols, tiling.chunks)
    tile = te.compute((*tiles, *in_tile), read_input, name="tile", varargs_names=["e", "w"][: len(in_tile)])

    chunk, c, kr, ks = (
        te.reduce_axis((0, extent), name=name)
        for name, extent in (("chunk", tiling.chunks // tiling.splits), ("c", channels), ("r", r), ("s", s))
    )

    def partial_sum(tn: Any, split: Any, kb: Any, v: Any, ty: Any, tx: Any, own: Any, lane: Any) -> Any:
        row_tap = _phase_by_phase(kr, r, workload.stride[0]) if tiling.adjacent else kr
        place = (tn, kb // (blocks // groups), ty, tx, chunk * tiling.splits + split)
        tap = tiling.row_axis.position(row_tap) * tiling.pitch + tiling.col_axis.position(ks)
        at = c * tiling.channel_stride + tap + tiling.pixel_address((own, lane))
        element = tile[(*place, at // width, at % width)] if width > 1 else tile[(*place, at)]
        row = kb % (rows // vector) * vector + v
        weight = weights[place[4], kb // (rows // vector), c, row_tap, ks, row // WIDTH, row % WIDTH]
        return te.sum(weight.astype("float32") * element.astype("float32"), axis=[chunk, c, kr, ks])

    shape = (blocks, vector, grid_rows, grid_cols, *tiling.pixel_shape)
    part = te.compute((image_tiles, tiling.splits, *shape), partial_sum, name="part")
    if tiling.splits > 1:
        split = te.reduce_axis((0, tiling.splits), name="split")
        total = te.compute(
            (image_tiles, *shape), lambda tn, *at: te.sum(part[(tn, split, *at)], axis=split), name="sum"
        )

    def summed(i: Any, k: Any, p: Any, q: Any) -> Any:
        at = (k // vector, k % vector, p // tiling.rows, q // tiling.cols, *tiling.pixel_index(i, p, q))
        return total[(i // tiling.images, *at)] if tiling.splits > 1 else part[(i // tiling.images, 0, *at)]

    return DirectConv([x, weights, *output_stage(workload, summed)])
