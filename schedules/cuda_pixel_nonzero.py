"""Template `cuda_pixel_nonzero`: threads on output pixels x nonzeros, for layers with few pixels.

The chunks of channels are dealt out to `splits` workers, whose partial sums are added at the end. The workers are

- "warps" of one block, which stages a chunk for each of them and adds their sums in shared memory: one kernel; or
- "blocks", whose sums go through global memory: a second kernel adds them, with the bias and the activation.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import s_tir, tirx
from tvm.target import Target

from tvm_sparse.compute.direct_conv import DirectConv
from tvm_sparse.compute.warp_tiling import WARP, WarpTiling
from tvm_sparse.errors import InputError
from tvm_sparse.schedules import cuda_cost
from tvm_sparse.schedules import cuda_stages as stages
from tvm_sparse.schedules import cuda_tiles as tiles
from tvm_sparse.schedules.base import Knobs, Template
from tvm_sparse.schedules.copy_tests import branch_copies
from tvm_sparse.schedules.primitives import bind_row_length, declare_whole_read
from tvm_sparse.schedules.registers import keep_own_lane
from tvm_sparse.schedules.row_order import store_in_order
from tvm_sparse.workload import ConvWorkload

#: Bytes of a partial sum, float32.
SUM_BYTES = 4
#: Warps of a block that adds partial sums: few, so that there are blocks for every multiprocessor.
ADDING_WARPS = 8


class CudaPixelNonzero(Template):
    name = "cuda_pixel_nonzero"
    stages_filter = True

    def applies(self, workload: ConvWorkload, target: Target) -> str | None:
        if workload.c_per_group < 2:
            return "a single input channel a group leaves nothing to split"
        return tiles.why_not(workload, target)

    def space(self, workload: ConvWorkload, target: Target) -> dict[str, tuple[int | str, ...]]:
        return {**tiles.tile_space(workload), "splits": self.splits(workload), "split_over": ("warps", "blocks")}

    @staticmethod
    def splits(workload: ConvWorkload) -> tuple[int, ...]:
        """The partial sums a pixel may be cut into."""
        return tuple(s for s in (2, 4, 8, 16) if s <= workload.c_per_group)

    def default(self, workload: ConvWorkload, density: float, target: Target) -> dict[str, int | str]:
        return cuda_cost.cheapest(workload, density, target, self.splits(workload))[1]

    def smaller(self, workload: ConvWorkload, knobs: Knobs) -> dict[str, int | str] | None:
        return cuda_cost.smaller(workload, knobs)

    def estimate_us(self, workload: ConvWorkload, density: float, knobs: Knobs, target: Target) -> float:
        if knobs["split_over"] == "warps" and not _shared_evenly(knobs, int(knobs["splits"])):
            return math.inf
        return cuda_cost.estimate_fitting(self, workload, density, knobs, target)

    def tiling(self, workload: ConvWorkload, knobs: Knobs) -> WarpTiling:
        tiling = tiles.tiling_of(workload, knobs)
        assert isinstance(tiling, WarpTiling)
        return tiling

    def row_block_multiple(self, knobs: Knobs) -> int:
        return int(knobs["warps"]) * int(knobs["blocks_per_warp"])

    def row_order(self, workload: ConvWorkload, weight: NDArray, knobs: Knobs) -> NDArray[np.int32] | None:
        return tiles.row_order(workload, weight, knobs)

    def shared_bytes(self, tiling: WarpTiling, knobs: Knobs, entries: int) -> int:
        """Shared memory of a block: what its workers stage and, over warps, their partial sums."""
        if knobs["split_over"] == "blocks":
            return tiles.staged_bytes(tiling, knobs, entries)
        sums = tiling.splits * int(knobs["warps"]) * _sums(knobs) * WARP * SUM_BYTES
        return tiles.staged_bytes(tiling, knobs, entries, tiling.splits) + sums

    def schedule(self, conv: DirectConv, tiling: WarpTiling, knobs: Knobs, target: Target) -> tirx.PrimFunc:
        workload, splits = tiling.workload, int(knobs["splits"])
        over_warps = knobs["split_over"] == "warps"
        if over_warps and not _shared_evenly(knobs, splits):
            raise InputError(f"{workload}: knobs {dict(knobs)}: {splits} warps cannot share {_sums(knobs)} sums evenly")
        warps = int(knobs["warps"]) * (splits if over_warps else 1)
        shared_bytes = self.shared_bytes(tiling, knobs, conv.segment_entries)
        tiles.check_block(workload, target, knobs, warps, shared_bytes)
        sch = s_tir.Schedule(conv.prim_func())
        stages.declare_reads(sch, tiling)
        stored = sch.cache_write(sch.get_sblock("part"), 0, "local")
        (_split_over_warps if over_warps else _split_over_blocks)(sch, stored, tiling, knobs)
        return store_in_order(branch_copies(keep_own_lane(bind_row_length(sch.mod["main"]), "part_local")))


def _sums(knobs: Knobs) -> int:
    """Sums of a thread."""
    return math.prod(tiles.extents(knobs["pixels"])) * int(knobs["blocks_per_warp"]) * tiles.vector_of(knobs)


def _shared_evenly(knobs: Knobs, workers: int) -> bool:
    """Whether the warps of a block can share the loops over row blocks, vector and the three of the pixels."""
    loops = (int(knobs["blocks_per_warp"]), tiles.vector_of(knobs), *tiles.extents(knobs["pixels"]))
    return tiles.shared_evenly(loops, workers)


def _split_over_warps(sch: s_tir.Schedule, stored: Any, tiling: WarpTiling, knobs: Knobs) -> None:
    """One kernel; threadIdx.z on row blocks, threadIdx.y on the workers, threadIdx.x on pixels."""
    warps, splits, per_warp = (int(knobs[name]) for name in ("warps", "splits", "blocks_per_warp"))
    axes = {"threadIdx.z": warps, "threadIdx.y": splits, "threadIdx.x": WARP}
    total = sch.get_sblock("sum")
    block, inside = stages.cut_output(sch, tiling, warps, per_warp, tiles.vector_of(knobs))
    warp, *rest = inside.values()
    lanes, own = rest[:3], rest[3:]
    sch.bind(block, "blockIdx.x")
    sch.compute_at(total, block, preserve_unit_loops=True)
    declare_whole_read(sch, total, "part", dims=2)
    sch.compute_at(stored, block, preserve_unit_loops=True)
    sch.set_scope(stored, 0, "shared.dyn")

    _, split, kb, v, _, _, pixel, part_lane = sch.get_loops(stored)[1:]
    part_warp, kb = sch.split(kb, [None, per_warp])
    sch.reorder(part_warp, split, part_lane, kb, v, pixel)
    for loop, axis in zip((part_warp, split, part_lane), axes, strict=True):
        sch.bind(loop, axis)
    chunk = stages.sum_nonzeros(sch, tiling, split, int(knobs["pad_to"]), axes)
    for loop in (kb, v, pixel):
        sch.unroll(loop)

    each, worker = sch.split(sch.fuse(*own), [None, splits])
    sch.reorder(warp, worker, *lanes, each)
    split = _add_splits(sch, each)
    for loop, axis in zip((warp, worker, sch.fuse(*lanes)), axes, strict=True):
        sch.bind(loop, axis)
    stages.set_to_zero(sch, "part", chunk)
    stages.copy_ahead(sch, chunk)
    stages.set_to_zero(sch, "sum", split)


def _split_over_blocks(sch: s_tir.Schedule, stored: Any, tiling: WarpTiling, knobs: Knobs) -> None:
    """Two kernels: the partial sums of a tile, row blocks and worker; then the sums of a tile and row blocks."""
    warps, per_warp = int(knobs["warps"]), int(knobs["blocks_per_warp"])
    axes = {"threadIdx.y": warps, "threadIdx.x": WARP}
    i, split, kb, v, ty, tx, pixel, lane = sch.get_loops(stored)
    kb_outer, warp, kb = sch.split(kb, [None, warps, per_warp])
    sch.reorder(i, split, ty, tx, kb_outer, warp, lane, kb, v, pixel)
    sch.bind(sch.fuse(i, split, ty, tx, kb_outer), "blockIdx.x")
    for loop, axis in zip((warp, lane), axes, strict=True):
        sch.bind(loop, axis)
    chunk = stages.sum_nonzeros(sch, tiling, warp, int(knobs["pad_to"]), axes)
    for loop in (kb, v, pixel):
        sch.unroll(loop)

    # Every sum has a thread of its own: there is nothing to reuse, only latency to hide.
    block, inside = stages.cut_output(sch, tiling, warps, per_warp, tiles.vector_of(knobs))
    warp, *rest = inside.values()
    lanes, own = rest[:3], rest[3:]
    several, warp = sch.split(warp, [None, math.gcd(warps, ADDING_WARPS)])
    sch.reorder(several, *own, warp, *lanes)
    split = _add_splits(sch, lanes[-1])
    sch.bind(sch.fuse(block, several, *own), "blockIdx.x")
    for loop, axis in zip((warp, sch.fuse(*lanes)), axes, strict=True):
        sch.bind(loop, axis)
    stages.set_to_zero(sch, "part", chunk)
    stages.copy_ahead(sch, chunk)
    stages.set_to_zero(sch, "sum", split)
    sch.unroll(split)


def _add_splits(sch: s_tir.Schedule, loop: Any) -> Any:
    """Compute "sum" in a register below a loop of "out"; returns the loop over the splits."""
    total = sch.get_sblock("sum")
    sch.compute_at(total, loop, preserve_unit_loops=True)
    sch.set_scope(total, 0, "local")
    return sch.get_loops(total)[-1]
