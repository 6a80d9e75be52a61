"""Direct sparse convolution as one tensor expression over a filter in a sparse format.

    x    (n, c, h, w)                     dense input
    tile (tn, g, ty, tx, chunk, e)        input of one tile and channel chunk, padded, in the layout of the tiling; e is
                                          (copy, element) if more than one element is copied at a time
    near (tn, split, c, kb, v, ty, tx, *f)  Σ over the nonzeros j of a row block kb in chunk c of a split; only if that
                                          sum has another dtype than part
    part (tn, split, kb, v, ty, tx, *f)   Σ over the chunks of a split and the nonzeros j of a row block kb
    sum  (tn, kb, v, ty, tx, *f)          Σ over the splits
    out  (n, k, p, q)                     activation(sum + bias + residual)

tn, ty, tx count tiles of images, rows and columns; f are the pixel dimensions of the tiling. In a PairTiling the last
of f is the pixel of a pair: e counts words and has this dimension behind it.
The filter is a stream (tvm_sparse.formats.FilterStream): the nonzeros of (chunk, row block) stand at
starts[chunk, kb] .. + counts[chunk, kb]; a row block is `vector` output channels that share columns, 1 if unstructured.
A StagedFilter holds the same in segments, each of the row blocks that a block of threads copies together; its rows may
be in another order than the output channels, and "out" is then in theirs until schedules.row_order stores it. Of a
JumpFilter's programs the expression takes every instruction for a nonzero, whose code is its offset times `vector` plus
its output channel in the row block; schedules.jump_code puts in what they do.
The sum over j runs to the longest row under a predicate, because s_tir cannot schedule around a loop bound that is read
from memory; schedules.primitives turns it into the true row length after scheduling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx

from tvm_sparse.compute.epilogue import output_stage
from tvm_sparse.compute.flat_tiling import FlatTiling
from tvm_sparse.compute.geometry import Source, Tiling
from tvm_sparse.compute.jump_filter import JumpFilter
from tvm_sparse.compute.packed_filter import ROW_START, PackedFilter, StagedFilter
from tvm_sparse.compute.pair_tiling import PAIR, PairTiling


@dataclass(frozen=True)
class DirectConv:
    """The expression's tensors in calling order.

    x, the arrays of the filter, [bias], [residual], out
    """

    args: list[te.Tensor]
    #: Entries of a segment of a StagedFilter, instructions of one of a JumpFilter.
    segment_entries: int = 0
    #: Nonzeros of the longest row of a chunk.
    longest_row: int = 0

    def prim_func(self) -> tirx.PrimFunc:
        return te.create_prim_func(self.args)


def direct_conv2d(
    tiling: Tiling | PairTiling, packed: PackedFilter | StagedFilter | JumpFilter, chunk_dtype: str = "float32"
) -> DirectConv:
    """Direct sparse convolution of `tiling.workload` with a filter packed like `packed` (only its shapes matter here).

    Parameters
    ----------
    chunk_dtype : of the sum over a row's nonzeros in a chunk; those sums are added in float32

    Returns
    -------
    DirectConv
        Blocks "tile", "near" (only if a chunk is summed in 16 bits), "part", "sum"
        (only with several splits) and "out", in the shapes at the top of this file.
    """
    workload, vector, pad_to = tiling.workload, packed.vector, packed.pad_to
    n, dtype, groups = workload.n, workload.dtype, workload.groups
    row_blocks = packed.row_blocks
    image_tiles, grid_rows, grid_cols = tiling.grid
    blocks_per_group = row_blocks // groups

    x = te.placeholder((n, workload.c, workload.h, workload.w), dtype, name="x")
    filter_args, read_row = _filter(packed)
    read_tile = _paired_tile(tiling, x) if isinstance(tiling, PairTiling) else _tile(tiling, x)

    per_split = tiling.chunks // tiling.splits
    c = te.reduce_axis((0, per_split), name="c")
    j = te.reduce_axis((0, packed.longest_row), name="j")

    def term(c: Any, tn: Any, split: Any, kb: Any, v: Any, ty: Any, tx: Any, *f: Any) -> Any:
        chunk = c * tiling.splits + split
        count, value, offset = read_row(chunk, kb, v, j)
        element = read_tile((tn, kb // blocks_per_group, ty, tx, chunk), offset + tiling.pixel_address(f), f)
        product = value.astype(chunk_dtype) * element.astype(chunk_dtype)
        return tirx.if_then_else(j // pad_to < count, product, tirx.const(0, chunk_dtype))

    def partial_sum(tn: Any, split: Any, *at: Any) -> Any:
        if chunk_dtype != "float32":
            return te.sum(near[(tn, split, c, *at)].astype("float32"), axis=c)
        return te.sum(term(c, tn, split, *at), axis=[c, j])

    pixel_axes = [f"f{axis}" for axis in range(len(tiling.pixel_shape))]
    shape = (row_blocks, vector, grid_rows, grid_cols, *tiling.pixel_shape)
    rows_axes = ["kb", "v", "ty", "tx", *pixel_axes]
    if chunk_dtype != "float32":

        def chunk_sum(tn: Any, split: Any, c: Any, *at: Any) -> Any:
            return te.sum(term(c, tn, split, *at), axis=j)

        near_shape = (image_tiles, tiling.splits, per_split, *shape)
        near = te.compute(near_shape, chunk_sum, name="near", varargs_names=rows_axes)
    part = te.compute((image_tiles, tiling.splits, *shape), partial_sum, name="part", varargs_names=rows_axes)
    if tiling.splits > 1:
        split = te.reduce_axis((0, tiling.splits), name="split")

        def add_splits(tn: Any, kb: Any, v: Any, ty: Any, tx: Any, *f: Any) -> Any:
            return te.sum(part[(tn, split, kb, v, ty, tx, *f)], axis=split)

        total = te.compute((image_tiles, *shape), add_splits, name="sum", varargs_names=pixel_axes)

    order = filter_args[3] if isinstance(packed, StagedFilter) and packed.order is not None else None

    def summed(i: Any, k: Any, p: Any, q: Any) -> Any:
        tile = p // tiling.rows, q // tiling.cols
        if isinstance(tiling, FlatTiling):
            # s_tir cannot see that these are 0: p and q are no affine function of the lanes.
            tile = tile[0] if grid_rows > 1 else 0, 0
        at = (k // vector, k % vector, *tile, *tiling.pixel_index(i, p, q))
        return total[(i // tiling.images, *at)] if tiling.splits > 1 else part[(i // tiling.images, 0, *at)]

    entries = 0 if isinstance(packed, PackedFilter) else packed.entries
    return DirectConv([x, *filter_args, *output_stage(workload, summed, order)], entries, packed.longest_row)


#: (tile and chunk, offset and address, pixel) -> the element of the input that stands there.
ReadTile = Callable[[tuple[Any, ...], Any, tuple[Any, ...]], Any]


def _tile(tiling: Tiling, x: te.Tensor) -> ReadTile:
    """The input of every tile and chunk."""
    width = tiling.copy_width
    in_tile = (tiling.elements // width, width) if width > 1 else (tiling.elements,)

    def read_input(tn: Any, g: Any, ty: Any, tx: Any, chunk: Any, *e: Any) -> Any:
        return _element(x, tiling, g, tiling.source(e[0], e[1] if width > 1 else 0, chunk, tn, ty, tx))

    tile = te.compute((*_tiles(tiling), *in_tile), read_input, name="tile", varargs_names=["e", "w"][: len(in_tile)])

    def read(place: tuple[Any, ...], at: Any, _: tuple[Any, ...]) -> Any:
        return tile[(*place, at // width, at % width)] if width > 1 else tile[(*place, at)]

    return read


def _paired_tile(tiling: PairTiling, x: te.Tensor) -> ReadTile:
    """The input of every tile and chunk in words of two pixels."""
    words, width = tiling.words.elements, tiling.words.copy_width

    def read_input(place: tuple[Any, ...], copy: Any, element: Any, pair: Any) -> Any:
        tn, g, ty, tx, chunk = place
        return _element(x, tiling, g, tiling.source(copy, element, pair, chunk, tn, ty, tx))

    if tiling.axis == "columns":
        tile = te.compute(
            (*_tiles(tiling), words // width, width * PAIR),
            lambda *at: read_input(at[:5], at[5], at[6] // PAIR, at[6] % PAIR),
            name="tile",
        )
        return lambda place, at, f: tile[(*place, at // width, at % width * PAIR + f[-1])]

    tile = te.compute(
        (*_tiles(tiling), words, PAIR),
        lambda *at: read_input(at[:5], at[5] // width, at[5] % width, at[6]),
        name="tile",
    )
    return lambda place, at, f: tile[(*place, at, f[-1])]


def _tiles(tiling: Tiling | PairTiling) -> tuple[int, ...]:
    image_tiles, grid_rows, grid_cols = tiling.grid
    return image_tiles, tiling.workload.groups, grid_rows, grid_cols, tiling.chunks


def _element(x: te.Tensor, tiling: Tiling | PairTiling, g: Any, source: Source) -> Any:
    """An element of the input, or zero beyond its edge."""
    workload = tiling.workload
    image, channel, row, col, inside = source
    element = x[image, g * workload.c_per_group + channel, row, col]
    return tirx.if_then_else(tirx.all(*inside), element, tirx.const(0, workload.dtype)) if inside else element


#: (chunk, row block, output channel in it, j) -> its number of steps, and value and offset of its nonzero j.
ReadRow = Callable[[Any, Any, Any, Any], tuple[Any, Any, Any]]


def _filter(packed: PackedFilter | StagedFilter | JumpFilter) -> tuple[list[te.Tensor], ReadRow]:
    """The arguments of a filter, and how its nonzeros are read."""
    if isinstance(packed, JumpFilter):
        return _programs(packed)
    return _staged(packed) if isinstance(packed, StagedFilter) else _unstaged(packed)


def _unstaged(packed: PackedFilter) -> tuple[list[te.Tensor], ReadRow]:
    """The arguments of a filter that is read where it lies."""
    values, offsets, starts, counts = _arguments(packed, ("values", "offsets", "starts", "counts"))

    def read_row(chunk: Any, kb: Any, v: Any, j: Any) -> tuple[Any, Any, Any]:
        at = _entry(starts[chunk, kb], j, packed.pad_to)
        return counts[chunk, kb], values[at, v], offsets[at]

    return [values, offsets, starts, counts], read_row


def _staged(packed: StagedFilter) -> tuple[list[te.Tensor], ReadRow]:
    """The arguments of a filter in segments."""
    arguments = _arguments(packed, ("values", "offsets", "rows", "order")[: len(packed.arrays)])
    values, offsets, rows = arguments[:3]

    def read_row(chunk: Any, kb: Any, v: Any, j: Any) -> tuple[Any, Any, Any]:
        row, segment = rows[chunk, kb], kb // packed.together
        at = _entry(row >> (ROW_START.bit_length() - 1), j, packed.pad_to)
        return row & (ROW_START - 1), values[chunk, segment, at, v], offsets[chunk, segment, at]

    return arguments, read_row


def _programs(packed: JumpFilter) -> tuple[list[te.Tensor], ReadRow]:
    """The arguments of a filter of programs."""
    program, rows = arguments = _arguments(packed, ("program", "rows"))

    def read_row(chunk: Any, kb: Any, v: Any, j: Any) -> tuple[Any, Any, Any]:
        row, segment = rows[chunk, kb], kb // packed.together
        at = _entry(row >> (ROW_START.bit_length() - 1), j, packed.pad_to)
        word, code = (program[chunk, segment, at, half] for half in range(2))
        value = tirx.if_then_else(
            code % packed.vector == v, tirx.reinterpret("float32", word), tirx.const(0, "float32")
        )
        return row & (ROW_START - 1), value, code // packed.vector

    return arguments, read_row


def _arguments(packed: PackedFilter | StagedFilter | JumpFilter, names: tuple[str, ...]) -> list[te.Tensor]:
    return [
        te.placeholder(array.shape, str(array.dtype), name=name)
        for name, array in zip(names, packed.arrays, strict=True)
    ]


def _entry(start: Any, j: Any, pad_to: int) -> Any:
    """Where nonzero j of a row stands that starts at step `start`."""
    return (start + j // pad_to) * pad_to + j % pad_to if pad_to > 1 else start + j
