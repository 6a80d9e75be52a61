"""Which warps sum a convolution: each all chunks of its output channels, or several of them some chunks each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import s_tir

from tvm_sparse.compute.warp_tiling import WARP, WarpTiling
from tvm_sparse.schedules.cuda_stages import SHARED, set_to_zero
from tvm_sparse.schedules.primitives import declare_whole_read

#: Schedules the sum of a chunk below a loop bound to threads, these axes; returns the loop over chunks.
Sum = Callable[[s_tir.Schedule, Any, Any, dict[str, int]], Any]


def sum_alone(sch: s_tir.Schedule, tiling: WarpTiling, warp: Any, rest: list[Any], warps: int, sum_chunk: Sum) -> Any:
    """A warp sums all chunks for its output channels; returns the loop over chunks.

    `warp` and `rest`, over lanes and then what a thread has, are those of `cut_output`.
    """
    declare_whole_read(sch, sch.get_sblock("out"), "part", dims=2)
    sch.set_scope(sch.get_sblock("part"), 0, "local")
    lanes, own = rest[:3], rest[3:]
    sch.bind(warp, "threadIdx.y")
    chunk = sum_chunk(sch, tiling, warp, {"threadIdx.y": warps, "threadIdx.x": WARP})
    sch.bind(sch.fuse(*lanes), "threadIdx.x")
    set_to_zero(sch, "part", chunk)
    for loop in own:
        sch.unroll(loop)
    return chunk


def sum_together(
    sch: s_tir.Schedule,
    tiling: WarpTiling,
    stored: Any,
    block: Any,
    warp: Any,
    rest: list[Any],
    warps: int,
    sum_chunk: Sum,
) -> Any:
    """The warps on threadIdx.y sum some chunks each; then every one adds up some of the sums.

    `stored` is the block that keeps the sums of a warp in shared memory; the others are those of `sum_alone`. The
    innermost of what a thread has are dealt out. Returns the loop over chunks.
    """
    splits = tiling.splits
    axes = {"threadIdx.z": warps, "threadIdx.y": splits, "threadIdx.x": WARP}
    lanes, own = rest[:3], rest[3:]
    total = sch.get_sblock("sum")
    sch.compute_at(total, block, preserve_unit_loops=True)
    declare_whole_read(sch, total, "part", dims=2)
    sch.compute_at(stored, block, preserve_unit_loops=True)
    sch.set_scope(stored, 0, SHARED)

    _, split, kb, v, _, _, pixel, lane = sch.get_loops(stored)[1:]
    sch.reorder(kb, split, lane, v, pixel)
    for loop, axis in zip((kb, split, lane), axes, strict=True):
        sch.bind(loop, axis)
    chunk = sum_chunk(sch, tiling, split, axes)
    for loop in (v, pixel):
        sch.unroll(loop)

    each, worker = sch.split(sch.fuse(*own), [None, splits])
    sch.reorder(warp, worker, *lanes, each)
    sch.compute_at(total, each, preserve_unit_loops=True)
    sch.set_scope(total, 0, "local")
    split = sch.get_loops(total)[-1]
    for loop, axis in zip((warp, worker, sch.fuse(*lanes)), axes, strict=True):
        sch.bind(loop, axis)
    set_to_zero(sch, "part", chunk)
    set_to_zero(sch, "sum", split)
    return chunk
