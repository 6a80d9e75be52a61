"""Schedule steps the CUDA templates share: cutting the output over threads, and summing staged nonzeros.

A warp sits on 32 neighbouring pixels of one output channel, so that its loads of the input tile hit different memory
banks; a thread holds some such pixels times some row blocks in registers. A chunk's input, and the values and offsets
of all row blocks of a block of threads, are staged in shared memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from tvm import s_tir, tirx

from tvm_sparse.compute.flat_tiling import FlatTiling
from tvm_sparse.compute.pair_tiling import PAIR, PairTiling
from tvm_sparse.compute.warp_tiling import WARP, WarpTiling
from tvm_sparse.schedules.pair_copies import mark_interleave
from tvm_sparse.schedules.pairs import mark_pair_sum, mark_step_sum
from tvm_sparse.schedules.primitives import declare_whole_read, mark_row_length

SHARED = "shared.dyn"
AnyTiling = WarpTiling | PairTiling
#: Nonzeros of a copy of one thread.
WIDEST_COPY = 4
#: Instructions to work out what a copy is for, and to make it.
PLACE_COST, COPY_COST = 30, 4
#: Copies of a thread from run to run that are unrolled.
MOST_COPIES = 32


def cut_output(sch: s_tir.Schedule, tiling: AnyTiling, warps: int, per_warp: int, vector: int) -> tuple[Any, dict]:
    """Cut the loops of "out" into those of a block, fused, and those inside a block, by name.

    Inside: warp (row blocks), lane_image, lane_row and lane_col (the pixels of a warp, not fused yet: s_tir finds
    exact regions below exact loops only), kb and v (output channels), own_image, own_row and own_col (the pixels of a
    thread); of pairs also pair, the last.
    """
    n, k, p, q = sch.get_loops(sch.get_sblock("out"))
    pair = []
    if isinstance(tiling, PairTiling) and tiling.axis == "columns":
        q, *pair = sch.split(q, [None, PAIR])
    elif isinstance(tiling, PairTiling):
        n, *pair = sch.split(n, [None, PAIR])
    g, k = sch.split(k, [tiling.workload.groups, None])
    k_outer, warp, kb, v = sch.split(k, [None, warps, per_warp, vector])
    cut = _cut_flat(sch, tiling, n, p, q) if isinstance(tiling, FlatTiling) else _cut_axes(sch, tiling, n, p, q)
    tiles, own, lanes = zip(*cut, strict=True)
    sch.reorder(tiles[0], g, *tiles[1:], k_outer, warp, *lanes, kb, v, *own, *pair)
    names = ("lane_image", "lane_row", "lane_col", "own_image", "own_row", "own_col", "pair")
    inside = {"warp": warp, **dict(zip(names[:3], lanes, strict=True)), "kb": kb, "v": v}
    return sch.fuse(tiles[0], g, *tiles[1:], k_outer), {**inside, **dict(zip(names[3:], (*own, *pair), strict=False))}


def _cut_axes(sch: s_tir.Schedule, tiling: AnyTiling, *loops: Any) -> Iterable[tuple[Any, Any, Any]]:
    """Of images, rows and columns the loops over tiles, over the pixels of a thread and over lanes."""
    for axis, (loop, each, several) in enumerate(zip(loops, tiling.pixels, tiling.lanes, strict=True)):
        if axis == 1 and isinstance(tiling, WarpTiling) and tiling.adjacent:
            tile, lane, pixel = sch.split(loop, [None, several, each])
        else:
            tile, pixel, lane = sch.split(loop, [None, each, several])
        yield tile, pixel, lane


def _cut_flat(sch: s_tir.Schedule, tiling: FlatTiling, n: Any, p: Any, q: Any) -> Iterable[tuple[Any, Any, Any]]:
    """As `_cut_axes`, of rows that lie one behind the other."""
    images, _, positions = tiling.pixels
    tile_image, own_image, lane_image = sch.split(n, [None, images, 1])
    tile_row, row = sch.split(p, [None, tiling.rows])
    tile_col, col = sch.split(q, [1, tiling.pitch])
    sch.reorder(tile_row, tile_col, row, col)
    own_row, lane_row, own_col, lane_col = sch.split(sch.fuse(row, col), [1, 1, positions, WARP])
    return (tile_image, own_image, lane_image), (tile_row, own_row, lane_row), (tile_col, own_col, lane_col)


def declare_reads(sch: s_tir.Schedule, tiling: AnyTiling) -> None:
    """State the reads at places that are read from memory: of the whole tile and the whole staged filter."""
    block = sch.get_sblock("near" if _sums_chunks(sch) else "part")
    declare_whole_read(sch, block, "tile", dims=2 if tiling.copy_width > 1 or isinstance(tiling, PairTiling) else 1)
    declare_whole_read(sch, block, "values", dims=2)
    declare_whole_read(sch, block, "offsets")


def _sums_chunks(sch: s_tir.Schedule) -> bool:
    """Whether the nonzeros of a chunk are summed on their own, in "near"."""
    return "near" in _blocks_below(sch, sch.get_sblock("root"))


def _blocks_below(sch: s_tir.Schedule, place: Any) -> list[str]:
    return [sch.get(block).name_hint for block in sch.get_child_blocks(place)]


#: What a block of threads stages for a chunk: the filter's share first, since the longest wait is for the input.
STAGED = ("rows", "values", "offsets", "tile")


def sum_nonzeros(
    sch: s_tir.Schedule, tiling: AnyTiling, loop: Any, pad_to: int, threads: dict[str, int], narrow_steps: bool = False
) -> Any:
    """Compute "part" in registers below `loop`, its input and filter staged in shared memory chunk by chunk.

    Parameters
    ----------
    loop : innermost loop of a consumer of "part" that is bound to threads, those over the lanes of a warp excepted
    pad_to : nonzeros a step
    threads : the thread axes of a block and their extents, lanes last; all of them copy
    narrow_steps : whether pairs are summed in 16 bits within a step

    Returns
    -------
    LoopRV
        The loop over chunks, for `set_to_zero` once all threads are bound.
    """
    part = sch.get_sblock("part")
    pair_axis = 1 if isinstance(tiling, PairTiling) else 0
    near = sch.get_sblock("near") if _sums_chunks(sch) else None
    sch.compute_at(part, loop, preserve_unit_loops=True)
    *outside, kb, v, _, _, own, lane = sch.get_loops(part)[: -1 - pair_axis - (near is None)]
    *pair, c = sch.get_loops(part)[len(outside) + 6 :][: pair_axis + 1]
    inner = [v, own, *pair]
    if near is None:
        step, nonzero = sch.split(sch.get_loops(part)[-1], [None, pad_to])
        sch.reorder(lane, c, kb, step, nonzero, *inner)
    else:
        sch.reorder(lane, c, kb, *inner)
        for each in inner:
            sch.unroll(each)
        sch.set_scope(near, 0, "local")
        sch.compute_at(near, kb, preserve_unit_loops=True)
        v, _, _, own, _, *pair, j = sch.get_loops(near)[-7:]
        inner = [v, own, *pair]
        step, nonzero = sch.split(j, [None, pad_to])
        sch.reorder(step, nonzero, *inner)
    reader = part if near is None else near
    sch.bind(lane, "threadIdx.x")

    above = len([*outside, lane, c])
    for name in STAGED:
        staged = (
            sch.get_sblock("tile") if name == "tile" else sch.cache_read(reader, _read_index(sch, reader, name), SHARED)
        )
        sch.set_scope(staged, 0, SHARED)
        sch.compute_at(staged, c, preserve_unit_loops=True)
        *outer, run = sch.get_loops(staged)[above:]
        if name == "tile" and isinstance(tiling, PairTiling):
            _copy_pairs(sch, staged, above, tiling, threads)
            continue
        if name == "values" or (name == "tile" and tiling.copy_width > 1):
            run = sch.fuse(outer.pop(), run)
        if name == "tile":
            share_copy(sch, outer, run, *tiling.copy_shape, tiling.copy_width, threads)
        else:
            share_copy(sch, outer, run, 1, int(sch.get(run).extent), 1 if name == "rows" else WIDEST_COPY, threads)

    # A loop's bound cannot be read from shared memory (TVM 0.27): every row's goes through a register.
    own_rows = sch.cache_read(reader, _read_index(sch, reader, "rows"), "local")
    sch.compute_at(own_rows, kb, preserve_unit_loops=True)
    mark_row_length(sch, step)
    if near is not None:
        set_to_zero(sch, "near", step, above=len(sch.get_loops(near)) - len(inner) - 2)
    if pair:
        mark_pair_sum(sch, inner.pop())
    if narrow_steps:
        sch.reorder(step, *inner, nonzero, *pair)
        mark_step_sum(sch, nonzero)
    for each in (kb, *([] if narrow_steps else [nonzero]), *inner):
        sch.unroll(each)
    return c


def _copy_pairs(sch: s_tir.Schedule, tile: Any, above: int, tiling: PairTiling, threads: dict[str, int]) -> None:
    """Share the copying of a tile of pairs: as it lies, or images on their own and then paired."""
    *outer, run, pair = sch.get_loops(tile)[above:]
    if tiling.axis == "columns":
        # Were all accesses of the tile to pairs, TVM 0.27 would take it for an array of vectors and refuse to copy it.
        vector = tiling.copy_width > PAIR
        share_copy(sch, outer, sch.fuse(run, pair), *tiling.copy_shape, tiling.copy_width, threads, vector)
        return
    share_copy(sch, outer, run, *tiling.copy_shape, tiling.copy_width, threads, vector=False)
    mark_interleave(sch, sch.get_loops(tile)[above])


def _read_index(sch: s_tir.Schedule, block: Any, buffer: str) -> int:
    """Which of a block's reads is of this buffer or of a copy of it."""
    return next(i for i, read in enumerate(sch.get(block).reads) if read.source.name.split("_")[0] == buffer)


def share_copy(
    sch: s_tir.Schedule,
    outer: list[Any],
    loop: Any,
    runs: int,
    length: int,
    width: int,
    threads: dict[str, int],
    vector: bool = True,
) -> None:
    """Share the copying of `runs` runs of `length` elements, `width` at a time, among the threads of a block.

    Warps are dealt out to runs and to places in a run such that few copies are left over. What a thread copies differs
    from run to run by a constant: its addresses and tests are worked out once for all runs. The
    elements of a copy are a vector unless `vector` is False.
    """
    *warp_axes, lane_axis = threads
    warps = threads[warp_axes[-1]]
    shared = math.prod(threads[axis] for axis in warp_axes[:-1])
    pieces = -(-length // (width * WARP))
    along = min(
        (w for w in range(1, warps + 1) if warps % w == 0),
        key=lambda w: (-(-pieces // w) * (PLACE_COST + COPY_COST * -(-runs // (warps // w * shared))), -w),
    )
    run, place = sch.split(loop, [runs, length])
    again, place, lane, element = sch.split(place, [None, along, WARP, width])
    several = sch.fuse(*outer, run) if outer else run
    several, *shares, by_run = sch.split(several, [None, *(threads[axis] for axis in warp_axes[:-1]), warps // along])
    sch.reorder(again, *shares, by_run, place, lane, several, element)
    for share, axis in zip(shares, warp_axes[:-1], strict=True):
        sch.bind(share, axis)
    sch.bind(sch.fuse(by_run, place), warp_axes[-1])
    sch.bind(lane, lane_axis)
    if vector:
        sch.vectorize(element)
    if int(sch.get(several).extent) <= MOST_COPIES:
        sch.unroll(several)


def set_to_zero(sch: s_tir.Schedule, block: str, loop: Any, above: int = 0) -> None:
    """Initialise a sum in front of `loop`: inside it, a row without nonzeros would never be.

    The initialisation is unrolled, but for the outermost `above` loops.
    """
    init = sch.decompose_reduction(sch.get_sblock(block), loop)
    for inner in sch.get_loops(init)[above:]:
        if sch.get(inner).kind == tirx.ForKind.SERIAL:
            sch.unroll(inner)


def copy_ahead(sch: s_tir.Schedule, chunk: Any) -> None:
    """Copy the next chunk's input and filter asynchronously while this chunk is summed, in a second buffer.

    TVM's software pipeline gives the buffers, the waits and, in a build that allows asynchronous copies, cp.async; a
    copy of zeros beyond the input's edge needs no branch then. Images that are paired go through registers
    (pair_copies).
    """
    sch.annotate(chunk, "software_pipeline_stage", [*(0 for _ in STAGED), 1])
    sch.annotate(chunk, "software_pipeline_order", list(range(len(STAGED) + 1)))
    sch.annotate(chunk, "software_pipeline_async_stages", [0])
