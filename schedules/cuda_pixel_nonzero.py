"""Template `cuda_pixel_nonzero`: threads on output pixels x nonzeros, for layers with few pixels.

The chunks of channels are dealt out to `splits` workers, whose partial sums are added at the end. The workers are

- "warps" of one block, which stages a chunk for each of them and adds their sums in shared memory: one kernel; or
- "blocks", whose sums go through global memory: a second kernel adds them, with the bias and the activation.
"""

from __future__ import annotations

from typing import Any

from tvm import s_tir, tirx
from tvm.target import Target

from tvm_sparse.compute.direct_conv import DirectConv
from tvm_sparse.compute.geometry import Tiling
from tvm_sparse.errors import InputError
from tvm_sparse.schedules import cuda_common as common
from tvm_sparse.schedules.base import Knobs, Template
from tvm_sparse.schedules.gpu_target import shared_limit, thread_limit
from tvm_sparse.schedules.primitives import bind_row_length, declare_whole_read
from tvm_sparse.schedules.registers import keep_own_lane
from tvm_sparse.workload import ConvWorkload

#: Shared memory of the tiles of one block.
STAGED_BYTES = 48 * 1024
#: Most workers, sums and pixels of a thread, and warps of a block whose chunks are not split over warps.
SPLITS, SUMS, PIXELS, WARPS = 8, 16, 2, 4
SUM_BYTES = 4


class CudaPixelNonzero(Template):
    name = "cuda_pixel_nonzero"

    def applies(self, workload: ConvWorkload, target: Target) -> str | None:
        if workload.c_per_group < 2:
            return "a single input channel a group leaves nothing to split"
        return common.why_not(workload, target)

    def space(self, workload: ConvWorkload, target: Target) -> dict[str, tuple[int | str, ...]]:
        splits = tuple(s for s in (2, 4, 8, 16) if s <= workload.c_per_group)
        return {**common.tile_space(workload), "splits": splits, "split_over": ("warps", "blocks")}

    def default(self, workload: ConvWorkload, density: float, target: Target) -> dict[str, int | str]:
        text = common.format_for(workload, density)
        vector = common.vector_of({"format": text})
        budget = min(STAGED_BYTES, shared_limit(target))
        most_warps = thread_limit(target) // common.WARP
        cols, pixels = common.best_tile(workload, PIXELS, budget // SPLITS)
        row_blocks = -(-workload.k_per_group // vector)
        per_warp = max(d for d in (1, 2, 4) if d == 1 or (d * vector * pixels <= SUMS and row_blocks % d == 0))
        splits = max(s for s in (1, 2, 4, SPLITS) if s <= min(workload.c_per_group, max(2, most_warps)))
        sums_bytes = splits * per_warp * vector * pixels * common.WARP * SUM_BYTES
        together = splits * common.tile_bytes(workload, cols, pixels, 1) + sums_bytes
        sums: dict[str, int | str] = {"pixels": pixels, "format": text, "blocks_per_warp": per_warp}
        over_warps = _shared_evenly(sums, splits) and splits <= most_warps and together <= budget
        room = (budget - sums_bytes) // splits if over_warps else budget
        share = -(-workload.c_per_group // splits)
        channels = min(share, common.channels_within(workload, cols, pixels, room))
        blocks = 1 if workload.groups > 1 else -(-row_blocks // per_warp)
        return {
            "cols": cols,
            "pixels": pixels,
            "channels": channels,
            "warps": 1 if over_warps else min(WARPS, most_warps, blocks),
            "blocks_per_warp": per_warp,
            "pad_to": common.padding_for(workload, density, channels),
            "format": text,
            "splits": splits,
            "split_over": "warps" if over_warps else "blocks",
        }

    def tiling(self, workload: ConvWorkload, knobs: Knobs) -> Tiling:
        return common.pixel_tiling(workload, knobs, int(knobs["splits"]))

    def row_block_multiple(self, knobs: Knobs) -> int:
        return int(knobs["warps"]) * int(knobs["blocks_per_warp"])

    def shared_bytes(self, tiling: Tiling, knobs: Knobs) -> int:
        """Shared memory of a block: its tiles and, over warps, their partial sums."""
        tile = tiling.elements * common.DTYPE_BYTES[tiling.workload.dtype]
        if knobs["split_over"] == "blocks":
            return tile
        sums = int(knobs["warps"]) * _sums(knobs) * common.WARP * SUM_BYTES
        return int(knobs["splits"]) * (tile + sums)

    def schedule(self, conv: DirectConv, tiling: Tiling, knobs: Knobs, target: Target) -> tirx.PrimFunc:
        workload, splits = tiling.workload, int(knobs["splits"])
        over_warps = knobs["split_over"] == "warps"
        if over_warps and not _shared_evenly(knobs, splits):
            raise InputError(f"{workload}: knobs {dict(knobs)}: {splits} warps cannot share {_sums(knobs)} sums evenly")
        warps = int(knobs["warps"]) * (splits if over_warps else 1)
        common.check_block(workload, target, knobs, warps, self.shared_bytes(tiling, knobs))

        sch = s_tir.Schedule(conv.prim_func())
        declare_whole_read(sch, sch.get_sblock("part"), "tile")
        stored = sch.cache_write(sch.get_sblock("part"), 0, "local")
        (_split_over_warps if over_warps else _split_over_blocks)(sch, stored, tiling, knobs)
        return keep_own_lane(bind_row_length(sch.mod["main"]), "part_local")


def _sums(knobs: Knobs) -> int:
    """Sums of a thread."""
    return int(knobs["pixels"]) * int(knobs["blocks_per_warp"]) * common.vector_of(knobs)


def _shared_evenly(knobs: Knobs, workers: int) -> bool:
    """Whether whole loops, innermost first, and a factor of the next one make up the workers of a sum.

    s_tir can undo no other cut of the fused loops over row blocks, vector and pixels.
    """
    for extent in (int(knobs["pixels"]), common.vector_of(knobs), int(knobs["blocks_per_warp"])):
        if extent % workers == 0:
            return True
        if workers % extent:
            return False
        workers //= extent
    return workers == 1


def _split_over_warps(sch: s_tir.Schedule, stored: Any, tiling: Tiling, knobs: Knobs) -> None:
    """One kernel; threadIdx.z on row blocks, threadIdx.y on the workers, threadIdx.x on pixels."""
    warps, splits, per_warp = (int(knobs[name]) for name in ("warps", "splits", "blocks_per_warp"))
    axes = {"threadIdx.z": warps, "threadIdx.y": splits, "threadIdx.x": common.WARP}
    total = sch.get_sblock("sum")
    block, inside = common.cut_output(sch, tiling, knobs)
    warp, lane_row, lane_col, *own = inside.values()
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
    chunk = common.sum_nonzeros(sch, split, int(knobs["pad_to"]), axes)
    for loop in (kb, v, pixel):
        sch.unroll(loop)

    each, worker = sch.split(sch.fuse(*own), [None, splits])
    sch.reorder(warp, worker, lane_row, lane_col, each)
    split = _add_splits(sch, each)
    for loop, axis in zip((warp, worker, sch.fuse(lane_row, lane_col)), axes, strict=True):
        sch.bind(loop, axis)
    common.set_to_zero(sch, "part", chunk)
    common.set_to_zero(sch, "sum", split)


def _split_over_blocks(sch: s_tir.Schedule, stored: Any, tiling: Tiling, knobs: Knobs) -> None:
    """Two kernels: the partial sums of a tile, row blocks and worker; then the sums of a tile and row blocks."""
    warps, per_warp = int(knobs["warps"]), int(knobs["blocks_per_warp"])
    axes = {"threadIdx.y": warps, "threadIdx.x": common.WARP}
    i, split, kb, v, ty, tx, pixel, lane = sch.get_loops(stored)
    kb_outer, warp, kb = sch.split(kb, [None, warps, per_warp])
    sch.reorder(i, split, ty, tx, kb_outer, warp, lane, kb, v, pixel)
    sch.bind(sch.fuse(i, split, ty, tx, kb_outer), "blockIdx.x")
    for loop, axis in zip((warp, lane), axes, strict=True):
        sch.bind(loop, axis)
    chunk = common.sum_nonzeros(sch, warp, int(knobs["pad_to"]), axes)
    for loop in (kb, v, pixel):
        sch.unroll(loop)

    block, inside = common.cut_output(sch, tiling, knobs)
    warp, lane_row, lane_col, *own = inside.values()
    split = _add_splits(sch, own[-1])
    sch.bind(block, "blockIdx.x")
    for loop, axis in zip((warp, sch.fuse(lane_row, lane_col)), axes, strict=True):
        sch.bind(loop, axis)
    common.set_to_zero(sch, "part", chunk)
    common.set_to_zero(sch, "sum", split)


def _add_splits(sch: s_tir.Schedule, loop: Any) -> Any:
    """Compute "sum" in a register below a loop of "out"; returns the loop over the splits."""
    total = sch.get_sblock("sum")
    sch.compute_at(total, loop, preserve_unit_loops=True)
    sch.set_scope(total, 0, "local")
    return sch.get_loops(total)[-1]
