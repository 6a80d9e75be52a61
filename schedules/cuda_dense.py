"""Template `cuda_dense`: dense convolution on a GPU, threads on output pixels, every weight multiplied.

    block = (images, group, tile of pixels, output channels):
        for chunk of channels:
            tile, filter := input of this tile, weights of these output channels, in this chunk   (shared memory)
            warp = `vector` output channels, lane = pixel, thread = its own pixels f:
                part[v, f] += filter[c, r, s, v] * tile[c, r, s, f]   for every c, r, s           (registers)
        out := activation(part + bias + residual)

A column of the filter costs a warp one conflict-free load for every pixel of a thread and a broadcast load for every
four output channels, and feeds vector x pixels multiply-adds: with 8 x 8 the multiply-adds are the bound. The windows
of a thread's rows overlap if they are `adjacent`: what they share is loaded once. Where few warps are left the chunks
are dealt out to `splits` warps, whose sums the block adds in shared memory.

The next chunk is copied to a second buffer while one is summed. With a single buffer, and few registers, more blocks
fit a multiprocessor, of which some sum while others copy.
"""

from __future__ import annotations

import math
from typing import Any

from numpy.typing import NDArray
from tvm import s_tir, tirx
from tvm.target import Target

from tvm_sparse.compute.dense_conv import dense_conv2d, dense_filter
from tvm_sparse.compute.direct_conv import DirectConv
from tvm_sparse.compute.warp_tiling import WARP, WarpTiling
from tvm_sparse.errors import InputError
from tvm_sparse.schedules import cuda_stages as stages
from tvm_sparse.schedules import cuda_tiles as tiles
from tvm_sparse.schedules import dense_cost
from tvm_sparse.schedules.async_copy import COPY_BYTES, copy_at_once, mark_copy_at_once
from tvm_sparse.schedules.base import Kernel, Knobs, Template, closest_divisor
from tvm_sparse.schedules.copy_tests import branch_copies
from tvm_sparse.schedules.primitives import declare_whole_read
from tvm_sparse.schedules.registers import keep_own_lane
from tvm_sparse.schedules.storage import find_buffer, keep_resident, replace_buffer
from tvm_sparse.schedules.warp_sums import sum_alone, sum_together
from tvm_sparse.workload import ELEMENT_BYTES, ConvWorkload

#: Multiply-adds of a thread that are written out without a loop; those of a row of the filter are in any case.
MOST_UNROLLED = 1024


class CudaDense(Template):
    name = "cuda_dense"

    def applies(self, workload: ConvWorkload, target: Target) -> str | None:
        if reason := tiles.why_not(workload, target):
            return reason
        if workload.groups > 1 and workload.k_per_group % min(dense_cost.VECTORS):
            return f"{workload.k_per_group} output channels a group are no multiple of {min(dense_cost.VECTORS)}"
        return None

    def space(self, workload: ConvWorkload, target: Target) -> dict[str, tuple[int | str, ...]]:
        return {
            **tiles.shape_space(workload),
            "warps": dense_cost.WARPS,
            "vector": dense_cost.VECTORS,
            "splits": tuple(n for n in dense_cost.SPLITS if n <= workload.c_per_group),
            "rows": ("apart", "adjacent"),
            "buffers": dense_cost.BUFFERS,
            "blocks_per_sm": dense_cost.RESIDENT,
        }

    def default(self, workload: ConvWorkload, density: float, target: Target) -> dict[str, int | str]:
        return dense_cost.cheapest(workload, target)

    def estimate_us(self, workload: ConvWorkload, density: float, knobs: Knobs, target: Target) -> float:
        try:
            tiling, block = self.tiling(workload, knobs), dense_cost.Block.of(knobs)
            dense_cost.check_block(tiling, block, target)
        except InputError:
            return math.inf
        return dense_cost.estimate_us(tiling, block)

    def tiling(self, workload: ConvWorkload, knobs: Knobs) -> WarpTiling:
        lanes, pixels = tiles.extents(knobs["lanes"]), tiles.extents(knobs["pixels"])
        adjacent = knobs["rows"] == "adjacent"
        return WarpTiling(workload, lanes, pixels, int(knobs["channels"]), int(knobs["splits"]), adjacent)

    def shared_bytes(self, tiling: WarpTiling, knobs: Knobs) -> int:
        """Shared memory of a block: see dense_cost.shared_bytes."""
        return dense_cost.shared_bytes(tiling, dense_cost.Block.of(knobs))

    def _kernel(self, workload: ConvWorkload, weight: NDArray, target: Target, chosen: dict[str, int | str]) -> Kernel:
        tiling, block = self.tiling(workload, chosen), dense_cost.Block.of(chosen)
        dense_cost.check_block(tiling, block, target)
        constants = dense_filter(weight, tiling, block.rows)
        func = self.schedule(dense_conv2d(tiling, constants, block.vector), tiling, chosen, target)
        return self.finished(workload, chosen, func, constants)

    def schedule(self, conv: DirectConv, tiling: WarpTiling, knobs: Knobs, target: Target) -> tirx.PrimFunc:
        warps, vector = int(knobs["warps"]), int(knobs["vector"])
        sch = s_tir.Schedule(conv.prim_func())
        declare_whole_read(sch, sch.get_sblock("part"), "tile", dims=2 if tiling.copy_width > 1 else 1)
        stored = sch.cache_write(sch.get_sblock("part"), 0, "local") if tiling.splits > 1 else None
        block, inside = stages.cut_output(sch, tiling, warps, 1, vector)
        warp, *rest = inside.values()
        sch.bind(block, "blockIdx.x")
        if stored is None:
            chunk = sum_alone(sch, tiling, warp, rest, warps, _sum)
        else:
            chunk = sum_together(sch, tiling, stored, block, warp, rest, warps, _sum)
        if int(knobs["buffers"]) == 2:
            _copy_ahead(sch, chunk)
        else:
            mark_copy_at_once(sch, chunk)
        func = _own_tile(keep_own_lane(sch.mod["main"], "part_local"), tiling)
        if int(knobs["buffers"]) == 2:
            func = branch_copies(func)
        elif tiling.copy_width == 1 and ELEMENT_BYTES[tiling.workload.dtype] == COPY_BYTES:
            func = copy_at_once(func, find_buffer(func, "tile_shared.dyn"))
        return keep_resident(func, int(knobs["blocks_per_sm"]))


def _sum(sch: s_tir.Schedule, tiling: WarpTiling, loop: Any, threads: dict[str, int]) -> Any:
    """Compute "part" in registers below `loop`, input and filter staged; returns the loop over chunks."""
    part = sch.get_sblock("part")
    sch.compute_at(part, loop, preserve_unit_loops=True)
    *outside, kb, v, _, _, own, lane, chunk, c, r, s = sch.get_loops(part)
    # Windows of adjacent rows overlap: with r innermost and written out, nvcc loads what they share once.
    taps = [c, s, r] if tiling.adjacent else [c, r, s]
    sch.reorder(lane, chunk, *taps, kb, v, own)
    sch.bind(lane, "threadIdx.x")
    above = len([*outside, lane, chunk])
    for name in ("filter", "tile"):
        index = next(n for n, read in enumerate(sch.get(part).reads) if read.source.name == name)
        staged = sch.get_sblock("tile") if name == "tile" else sch.cache_read(part, index, stages.SHARED)
        sch.set_scope(staged, 0, stages.SHARED)
        sch.compute_at(staged, chunk, preserve_unit_loops=True)
        *outer, run = sch.get_loops(staged)[above:]
        if name == "tile":
            if tiling.copy_width > 1:
                run = sch.fuse(outer.pop(), run)
            if dense_cost.by_rows(tiling):
                _copy_rows(sch, outer, run, tiling, threads)
            else:
                stages.share_copy(sch, outer, run, *tiling.copy_shape, tiling.copy_width, threads)
        else:
            *shares, lane = sch.split(sch.fuse(*outer), [None, *threads.values()])[1:]
            for each, axis in zip((*shares, lane), threads, strict=True):
                sch.bind(each, axis)
            sch.vectorize(run)
    index = next(n for n, read in enumerate(sch.get(part).reads) if read.source.name.startswith("filter"))
    weights = sch.cache_read(part, index, "local")
    sch.compute_at(weights, taps[-1], preserve_unit_loops=True)
    # Loads of single elements, which nvcc joins: were all accesses vectors, TVM 0.27 would refuse to copy them ahead.
    for each in sch.get_loops(weights)[-2:]:
        sch.unroll(each)
    unrolled = int(sch.get(v).extent) * int(sch.get(own).extent)
    for each in (own, v):
        sch.unroll(each)
    for each in reversed(taps):
        extent = int(sch.get(each).extent)
        fitting = extent if each is taps[-1] else closest_divisor(extent, max(1, MOST_UNROLLED // unrolled))
        sch.unroll(sch.split(each, [None, fitting])[1])
        unrolled *= fitting
        if fitting < extent:
            break
    return chunk


def _copy_rows(sch: s_tir.Schedule, outer: list[Any], run: Any, tiling: WarpTiling, threads: dict[str, int]) -> None:
    """Share the copying of a tile, single elements row by row, among the threads of a block.

    A thread's column stays the same from row to row. Neighbouring lanes copy neighbouring elements of the input,
    whatever the stride: those of one column of every phase, then of the next.
    """
    rows, span = tiling.elements // tiling.pitch, tiling.col_axis.span
    row, col = sch.split(run, [rows, tiling.pitch])
    if tiling.workload.stride[1] > 1 and tiling.pitch > span:
        phase, col = sch.split(col, [None, span])
        sch.reorder(col, phase)
        col = sch.fuse(col, phase)
    cols = int(sch.get(col).extent)
    several = math.prod(threads.values())
    width = min((8, 16, 32), key=lambda lanes: (-(-cols // lanes) * -(-rows // (several // lanes)), -lanes))
    again, lane_col = sch.split(col, [None, width])
    below, *shares, lane_row = sch.split(row, [None, *list(threads.values())[:-1], WARP // width])
    sch.reorder(*outer, again, below, *shares, lane_row, lane_col)
    for share, axis in zip(shares, list(threads)[:-1], strict=True):
        sch.bind(share, axis)
    sch.bind(sch.fuse(lane_row, lane_col), list(threads)[-1])


def _copy_ahead(sch: s_tir.Schedule, chunk: Any) -> None:
    """Copy the next chunk's input and filter while this one is summed: see stages.copy_ahead."""
    sch.annotate(chunk, "software_pipeline_stage", [0, 0, 1])
    sch.annotate(chunk, "software_pipeline_order", [0, 1, 2])
    sch.annotate(chunk, "software_pipeline_async_stages", [0])


def _own_tile(func: tirx.PrimFunc, tiling: WarpTiling) -> tirx.PrimFunc:
    """The tiles of a block in a buffer of their own, where s_tir cannot see that all its channels are of one group."""
    tile = find_buffer(func, "tile_shared.dyn")
    own = tirx.decl_buffer((tiling.splits, *tile.shape[5:]), tile.dtype, tile.name, scope=tile.scope())
    return replace_buffer(func, tile, own, lambda at: [at[4] % tiling.splits, *at[5:]])
