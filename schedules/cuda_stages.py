"""Schedule steps the CUDA templates share: cutting the output over threads, and summing staged nonzeros.

A warp sits on 32 neighbouring pixels of one output channel, so that its loads of the input tile hit different memory
banks; a thread holds some such pixels times some row blocks in registers. A chunk's input, and the values and offsets
of all row blocks of a block of threads, are staged in shared memory.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import s_tir, tirx

from tvm_sparse.compute.warp_tiling import WARP, WarpTiling
from tvm_sparse.schedules.primitives import declare_whole_read, mark_row_length

SHARED = "shared.dyn"
#: Nonzeros of a copy of one thread.
WIDEST_COPY = 4
#: Instructions to work out what a copy is for, and to make it.
PLACE_COST, COPY_COST = 30, 4
#: Copies of a thread from run to run that are unrolled.
MOST_COPIES = 32


def cut_output(sch: s_tir.Schedule, tiling: WarpTiling, warps: int, per_warp: int, vector: int) -> tuple[Any, dict]:
    """Cut the loops of "out" into those of a block, fused, and those inside a block, by name.

    Inside: warp (row blocks), lane_image, lane_row and lane_col (the pixels of a warp, not fused yet: s_tir finds
    exact regions below exact loops only), kb and v (output channels), own_image, own_row and own_col (the pixels of a
    thread).
    """
    n, k, p, q = sch.get_loops(sch.get_sblock("out"))
    g, k = sch.split(k, [tiling.workload.groups, None])
    k_outer, warp, kb, v = sch.split(k, [None, warps, per_warp, vector])
    cut = [
        sch.split(loop, [None, own, lanes])
        for loop, own, lanes in zip((n, p, q), tiling.pixels, tiling.lanes, strict=True)
    ]
    tiles, own, lanes = zip(*cut, strict=True)
    sch.reorder(tiles[0], g, *tiles[1:], k_outer, warp, *lanes, kb, v, *own)
    names = ("lane_image", "lane_row", "lane_col", "own_image", "own_row", "own_col")
    inside = {"warp": warp, **dict(zip(names[:3], lanes, strict=True)), "kb": kb, "v": v}
    return sch.fuse(tiles[0], g, *tiles[1:], k_outer), {**inside, **dict(zip(names[3:], own, strict=True))}


def declare_reads(sch: s_tir.Schedule, tiling: WarpTiling) -> None:
    """State the reads at places that "part" reads from memory: the whole tile and the whole staged filter."""
    part = sch.get_sblock("part")
    declare_whole_read(sch, part, "tile", dims=2 if tiling.copy_width > 1 else 1)
    declare_whole_read(sch, part, "values", dims=2)
    declare_whole_read(sch, part, "offsets")


#: What a block of threads stages for a chunk: the filter's share first, since the longest wait is for the input.
STAGED = ("rows", "values", "offsets", "tile")


def sum_nonzeros(sch: s_tir.Schedule, tiling: WarpTiling, loop: Any, pad_to: int, threads: dict[str, int]) -> Any:
    """Compute "part" in registers below `loop`, its input and filter staged in shared memory chunk by chunk.

    Parameters
    ----------
    loop : innermost loop of a consumer of "part" that is bound to threads, those over the lanes of a warp excepted
    pad_to : nonzeros a step
    threads : the thread axes of a block and their extents, lanes last; all of them copy

    Returns
    -------
    LoopRV
        The loop over chunks, for `set_to_zero` once all threads are bound.
    """
    part = sch.get_sblock("part")
    sch.compute_at(part, loop, preserve_unit_loops=True)
    *outside, kb, v, _, _, own, lane, c, j = sch.get_loops(part)
    step, nonzero = sch.split(j, [None, pad_to])
    sch.reorder(lane, c, kb, step, nonzero, v, own)
    sch.bind(lane, "threadIdx.x")

    above = len([*outside, lane, c])
    for name in STAGED:
        staged = (
            sch.get_sblock("tile") if name == "tile" else sch.cache_read(part, _read_index(sch, part, name), SHARED)
        )
        sch.set_scope(staged, 0, SHARED)
        sch.compute_at(staged, c, preserve_unit_loops=True)
        *outer, run = sch.get_loops(staged)[above:]
        if name == "values" or (name == "tile" and tiling.copy_width > 1):
            run = sch.fuse(outer.pop(), run)
        if name == "tile":
            _copy(sch, outer, run, *tiling.copy_shape, tiling.copy_width, threads)
        else:
            _copy(sch, outer, run, 1, int(sch.get(run).extent), 1 if name == "rows" else WIDEST_COPY, threads)

    # A loop's bound cannot be read from shared memory (TVM 0.27): every row's goes through a register.
    own_rows = sch.cache_read(part, _read_index(sch, part, "rows"), "local")
    sch.compute_at(own_rows, kb, preserve_unit_loops=True)
    mark_row_length(sch, step)
    for inner in (kb, nonzero, v, own):
        sch.unroll(inner)
    return c


def _read_index(sch: s_tir.Schedule, block: Any, buffer: str) -> int:
    """Which of a block's reads is of this buffer or of a copy of it."""
    return next(i for i, read in enumerate(sch.get(block).reads) if read.source.name.split("_")[0] == buffer)


def _copy(
    sch: s_tir.Schedule, outer: list[Any], loop: Any, runs: int, length: int, width: int, threads: dict[str, int]
) -> None:
    """Share the copying of `runs` runs of `length` elements, `width` at a time, among the threads of a block.

    Warps are dealt out to runs and to places in a run such that few copies are left over. What a thread copies differs
    from run to run by a constant: its addresses and tests are worked out once for all runs.
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
    sch.reorder(again, several, *shares, by_run, place, lane, element)
    for share, axis in zip(shares, warp_axes[:-1], strict=True):
        sch.bind(share, axis)
    sch.bind(sch.fuse(by_run, place), warp_axes[-1])
    sch.bind(lane, lane_axis)
    sch.vectorize(element)
    if int(sch.get(several).extent) <= MOST_COPIES:
        sch.unroll(several)


def set_to_zero(sch: s_tir.Schedule, block: str, loop: Any) -> None:
    """Initialise a sum in front of `loop`: inside it, a row without nonzeros would never be."""
    init = sch.decompose_reduction(sch.get_sblock(block), loop)
    for inner in sch.get_loops(init):
        if sch.get(inner).kind == tirx.ForKind.SERIAL:
            sch.unroll(inner)


def copy_ahead(sch: s_tir.Schedule, chunk: Any) -> None:
    """Copy the next chunk's input and filter asynchronously while this chunk is summed, in a second buffer.

    TVM's software pipeline gives the buffers, the waits and, in a build that allows asynchronous copies, cp.async; a
    copy of zeros beyond the input's edge needs no branch then.
    """
    sch.annotate(chunk, "software_pipeline_stage", [*(0 for _ in STAGED), 1])
    sch.annotate(chunk, "software_pipeline_order", list(range(len(STAGED) + 1)))
    sch.annotate(chunk, "software_pipeline_async_stages", [0])
