"""Direct sparse convolution as one tensor expression over a filter in a sparse format.

    x    (n, c, h, w)                     dense input
    tile (n, g, ty, tx, chunk, e)         input of one tile and channel chunk, padded, in the layout of the tiling
    part (n, split, kb, v, ty, tx, *f)    Σ over the chunks of a split and the nonzeros j of a row block kb
    sum  (n, kb, v, ty, tx, *f)           Σ over the splits
    out  (n, k, p, q)                     activation(sum + bias + residual)

Pixels of a tile are one dimension f, or two if the tiling asks for lanes.
The filter is a stream (tvm_sparse.formats.FilterStream): the nonzeros of (chunk, row block) stand at
starts[chunk, kb] .. + counts[chunk, kb]; a row block is `vector` output channels that share columns, 1 if unstructured.
The sum over j runs to the longest row under a predicate, because s_tir cannot schedule around a loop bound that is read
from memory; schedules.row_length turns it into the true row length after scheduling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx

from tvm_sparse.compute.epilogue import apply_epilogue
from tvm_sparse.compute.geometry import Tiling
from tvm_sparse.errors import InputError
from tvm_sparse.formats import FilterStream


@dataclass(frozen=True)
class PackedFilter:
    """The arrays a kernel reads: values (total, vector), offsets (total,), starts and counts (chunks, row blocks).

    `starts` and `counts` are in groups of `pad_to` nonzeros, so that a loop over groups needs no tail.
    """

    values: NDArray[np.floating]
    offsets: NDArray[np.int32]
    starts: NDArray[np.int32]
    counts: NDArray[np.int32]
    pad_to: int = 1

    @property
    def arrays(self) -> tuple[NDArray, NDArray, NDArray, NDArray]:
        """In the order in which the kernel takes them, behind x."""
        return self.values, self.offsets, self.starts, self.counts

    @property
    def vector(self) -> int:
        return self.values.shape[1]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)


def pack_filter(stream: FilterStream, tiling: Tiling, pad_to: int = 1, block_multiple: int = 1) -> PackedFilter:
    """Stretch the columns of a stream into offsets of this tiling.

    Parameters
    ----------
    pad_to : what the stream was padded to
    block_multiple : empty row blocks are added behind the last one up to a multiple of this

    Raises
    ------
    InputError
        When the stream was cut into other chunks than the tiling, or a row block reaches over two groups.
    """
    workload = tiling.workload
    if stream.channels_per_chunk != tiling.channels:
        raise InputError(
            f"{workload}: stream in chunks of {stream.channels_per_chunk} channels, {tiling} needs its own"
        )
    if workload.groups > 1 and workload.k_per_group % stream.vector:
        raise InputError(f"{workload}: vectors of {stream.vector} output channels reach over two groups")
    chunks, row_blocks = stream.starts.shape
    pad = ((0, tiling.chunks - chunks), (0, -row_blocks % block_multiple))
    return PackedFilter(
        values=np.ascontiguousarray(stream.values, workload.dtype),
        offsets=tiling.offsets(stream.columns),
        starts=np.pad(stream.starts // pad_to, pad).astype(np.int32),
        counts=np.pad(stream.counts // pad_to, pad).astype(np.int32),
        pad_to=pad_to,
    )


@dataclass(frozen=True)
class DirectConv:
    """The expression's tensors in calling order: x, values, offsets, starts, counts, [bias], [residual], out."""

    args: list[te.Tensor]

    def prim_func(self) -> tirx.PrimFunc:
        return te.create_prim_func(self.args)


def direct_conv2d(tiling: Tiling, packed: PackedFilter) -> DirectConv:
    """Direct sparse convolution of `tiling.workload` with a filter packed like `packed` (only its shapes matter here).

    Returns
    -------
    DirectConv
        Blocks "tile", "part", "sum" (only with several splits) and "out", in the shapes at the top of this file.
    """
    workload, vector, pad_to = tiling.workload, packed.vector, packed.pad_to
    n, dtype, groups = workload.n, workload.dtype, workload.groups
    stored, (chunks, row_blocks) = packed.values.shape[0], packed.counts.shape
    longest = max(1, int(packed.counts.max(initial=0))) * pad_to
    grid_rows, grid_cols = tiling.grid
    blocks_per_group = row_blocks // groups

    x = te.placeholder((n, workload.c, workload.h, workload.w), dtype, name="x")
    values = te.placeholder((stored, vector), dtype, name="values")
    offsets = te.placeholder((stored,), "int32", name="offsets")
    starts = te.placeholder((chunks, row_blocks), "int32", name="starts")
    counts = te.placeholder((chunks, row_blocks), "int32", name="counts")

    def read_input(i: Any, g: Any, ty: Any, tx: Any, chunk: Any, e: Any) -> Any:
        channel, row, col = tiling.source(e, ty, tx)
        channel = chunk * tiling.channels + channel
        inside = [row >= 0, row < workload.h, col >= 0, col < workload.w]
        if chunks * tiling.channels > workload.c_per_group or tiling.overrun:
            inside.append(channel < workload.c_per_group)
        element = x[i, g * workload.c_per_group + channel, row, col]
        return tirx.if_then_else(tirx.all(*inside), element, tirx.const(0, dtype))

    tile = te.compute((n, groups, grid_rows, grid_cols, chunks, tiling.elements), read_input, name="tile")

    per_split = chunks // tiling.splits
    c = te.reduce_axis((0, per_split), name="c")
    j = te.reduce_axis((0, longest), name="j")

    def partial_sum(i: Any, split: Any, kb: Any, v: Any, ty: Any, tx: Any, *f: Any) -> Any:
        chunk = c * tiling.splits + split
        at = (starts[chunk, kb] + j // pad_to) * pad_to + j % pad_to if pad_to > 1 else starts[chunk, kb] + j
        element = tile[i, kb // blocks_per_group, ty, tx, chunk, offsets[at] + tiling.pixel(tiling.flat_pixel(f))]
        term = values[at, v].astype("float32") * element.astype("float32")
        return te.sum(tirx.if_then_else(j // pad_to < counts[chunk, kb], term, tirx.const(0, "float32")), axis=[c, j])

    pixel_axes = ["t", "lane"] if tiling.lanes else ["f"]
    pixel_shape = (tiling.pixels // tiling.lanes, tiling.lanes) if tiling.lanes else (tiling.pixels,)
    shape = (row_blocks, vector, grid_rows, grid_cols, *pixel_shape)
    part = te.compute((n, tiling.splits, *shape), partial_sum, name="part", varargs_names=pixel_axes)
    if tiling.splits > 1:
        split = te.reduce_axis((0, tiling.splits), name="split")

        def add_splits(i: Any, kb: Any, v: Any, ty: Any, tx: Any, *f: Any) -> Any:
            return te.sum(part[(i, split, kb, v, ty, tx, *f)], axis=split)

        total = te.compute((n, *shape), add_splits, name="sum", varargs_names=pixel_axes)

    epilogue = workload.epilogue
    bias = te.placeholder((workload.k,), dtype, name="bias") if epilogue.bias else None
    out_shape = (n, workload.k, workload.p, workload.q)
    residual = te.placeholder(out_shape, dtype, name="residual") if epilogue.residual else None

    def output(i: Any, k: Any, p: Any, q: Any) -> Any:
        at = (k // vector, k % vector, p // tiling.rows, q // tiling.cols, *tiling.pixel_index(p, q))
        y = total[(i, *at)] if tiling.splits > 1 else part[(i, 0, *at)]
        if bias is not None:
            y = y + bias[k].astype("float32")
        if residual is not None:
            y = y + residual[i, k, p, q].astype("float32")
        return apply_epilogue(y, epilogue).astype(dtype)

    out = te.compute(out_shape, output, name="out")
    optional = [tensor for tensor in (bias, residual) if tensor is not None]
    return DirectConv([x, values, offsets, starts, counts, *optional, out])
