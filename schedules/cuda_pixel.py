"""Template `cuda_pixel`: direct convolution on a GPU with threads on output pixels.

    block = (image, group, tile of pixels, output channels):
        for chunk of channels:
            tile := input of this tile and chunk                                               (shared memory)
            warp = row blocks kb, lane = pixels f, f + 32, ...:
                part[kb, v, f] += Σ_j values[j, v] * tile[offset[j] + f]                       (registers)
        out := activation(part + bias + residual)

A nonzero costs a warp uniform loads of its value and offset, and one conflict-free load of the tile for every 32
pixels. A dense filter is the same kernel with row blocks of several channels that share every column: each load then
feeds `vector` multiply-adds.
"""

from __future__ import annotations

from tvm import s_tir, tirx
from tvm.target import Target

from tvm_sparse.compute.direct_conv import DirectConv
from tvm_sparse.compute.geometry import Tiling
from tvm_sparse.schedules import cuda_common as common
from tvm_sparse.schedules.base import Knobs, Template, closest_divisor
from tvm_sparse.schedules.gpu_target import shared_limit, thread_limit
from tvm_sparse.schedules.primitives import bind_row_length, declare_whole_read
from tvm_sparse.schedules.registers import keep_own_lane
from tvm_sparse.workload import ConvWorkload

#: Shared memory of a tile, small enough that several blocks share a multiprocessor.
STAGED_BYTES = 32 * 1024
#: Warps of a block, and row blocks and sums of a thread.
WARPS, BLOCKS_PER_WARP, SUMS, PIXELS = 8, 4, 64, 8
#: Outputs that keep every multiprocessor of a large GPU busy with one pixel a thread.
FILL = 132 * 256 * BLOCKS_PER_WARP


class CudaPixel(Template):
    name = "cuda_pixel"

    def applies(self, workload: ConvWorkload, target: Target) -> str | None:
        return common.why_not(workload, target)

    def space(self, workload: ConvWorkload, target: Target) -> dict[str, tuple[int | str, ...]]:
        return common.tile_space(workload)

    def default(self, workload: ConvWorkload, density: float, target: Target) -> dict[str, int | str]:
        text = common.format_for(workload, density)
        vector = common.vector_of({"format": text})
        budget = min(STAGED_BYTES, shared_limit(target))
        outputs = workload.n * workload.k * workload.p * workload.q
        cols, pixels = common.best_tile(workload, max(1, min(PIXELS, outputs // FILL)), budget)
        channels = common.channels_within(workload, cols, pixels, budget)
        row_blocks = -(-workload.k_per_group // vector)
        most_warps = min(WARPS, thread_limit(target) // common.WARP)
        per_warp = max(1, min(BLOCKS_PER_WARP, SUMS // (pixels * vector), row_blocks))
        if workload.groups > 1:
            warps = closest_divisor(row_blocks, most_warps)
            per_warp = closest_divisor(row_blocks // warps, per_warp)
        else:
            warps = min(most_warps, -(-row_blocks // per_warp))
        return {
            "cols": cols,
            "pixels": pixels,
            "channels": channels,
            "warps": warps,
            "blocks_per_warp": per_warp,
            "pad_to": common.padding_for(workload, density, channels),
            "format": text,
        }

    def tiling(self, workload: ConvWorkload, knobs: Knobs) -> Tiling:
        return common.pixel_tiling(workload, knobs)

    def row_block_multiple(self, knobs: Knobs) -> int:
        return int(knobs["warps"]) * int(knobs["blocks_per_warp"])

    def shared_bytes(self, tiling: Tiling, knobs: Knobs) -> int:
        """Shared memory of a block."""
        return tiling.elements * common.DTYPE_BYTES[tiling.workload.dtype]

    def schedule(self, conv: DirectConv, tiling: Tiling, knobs: Knobs, target: Target) -> tirx.PrimFunc:
        workload, warps = tiling.workload, int(knobs["warps"])
        common.check_block(workload, target, knobs, warps, self.shared_bytes(tiling, knobs))
        sch = s_tir.Schedule(conv.prim_func())
        declare_whole_read(sch, sch.get_sblock("part"), "tile")
        declare_whole_read(sch, sch.get_sblock("out"), "part", dims=2)
        sch.set_scope(sch.get_sblock("part"), 0, "local")
        block, inside = common.cut_output(sch, tiling, knobs)
        warp, lane_row, lane_col, *own = inside.values()
        sch.bind(block, "blockIdx.x")
        sch.bind(warp, "threadIdx.y")
        axes = {"threadIdx.y": warps, "threadIdx.x": common.WARP}
        chunk = common.sum_nonzeros(sch, warp, int(knobs["pad_to"]), axes)
        sch.bind(sch.fuse(lane_row, lane_col), "threadIdx.x")
        common.set_to_zero(sch, "part", chunk)
        for loop in own:
            sch.unroll(loop)
        return keep_own_lane(bind_row_length(sch.mod["main"]), "part_local")
