"""Template `cuda_pixel`: direct convolution on a GPU with threads on output pixels.

    block = (images, group, tile of pixels, output channels):
        for chunk of channels:
            tile := input of this tile and chunk                                               (shared memory)
            values, offsets := those of the block's row blocks in this chunk                   (shared memory)
            warp = row blocks kb, lane = pixel, thread = its own pixels f:
                part[kb, v, f] += Σ_j values[j, v] * tile[offsets[j] + f]                      (registers)
        out := activation(part + bias + residual)

A nonzero costs a warp one broadcast load of its value and offset, and one conflict-free load of the tile for every 32
pixels: shared memory's bandwidth is the bound. A dense filter is the same kernel with row blocks of several channels
that share every column: each load then feeds `vector` multiply-adds.

Of 16-bit elements a lane loads a word with a pair of pixels (compute/pair_tiling.py), which are summed

- in float32, or
- both at once in float16 within a chunk of channels, the chunks in float32: a relative error of 5e-4 to 1.6e-3.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tvm import s_tir, tirx
from tvm.target import Target

from tvm_sparse.compute.direct_conv import DirectConv
from tvm_sparse.compute.pair_tiling import PairTiling
from tvm_sparse.compute.warp_tiling import WARP, WarpTiling
from tvm_sparse.schedules import cuda_cost
from tvm_sparse.schedules import cuda_stages as stages
from tvm_sparse.schedules import cuda_tiles as tiles
from tvm_sparse.schedules.base import Knobs, Template
from tvm_sparse.schedules.copy_tests import branch_copies
from tvm_sparse.schedules.pair_copies import copy_pairs
from tvm_sparse.schedules.pairs import use_pairs
from tvm_sparse.schedules.primitives import bind_row_length, declare_whole_read
from tvm_sparse.schedules.registers import keep_own_lane
from tvm_sparse.schedules.row_order import store_in_order
from tvm_sparse.workload import ConvWorkload


class CudaPixel(Template):
    name = "cuda_pixel"
    stages_filter = True

    def applies(self, workload: ConvWorkload, target: Target) -> str | None:
        return tiles.why_not(workload, target)

    def space(self, workload: ConvWorkload, target: Target) -> dict[str, tuple[int | str, ...]]:
        pairs = tiles.pair_options(workload)
        return {**tiles.tile_space(workload), **({"pairs": pairs} if pairs else {})}

    def default(self, workload: ConvWorkload, density: float, target: Target) -> dict[str, int | str]:
        return cuda_cost.cheapest(workload, density, target)[1]

    def smaller(self, workload: ConvWorkload, knobs: Knobs) -> dict[str, int | str] | None:
        return cuda_cost.smaller(workload, knobs)

    def estimate_us(self, workload: ConvWorkload, density: float, knobs: Knobs, target: Target) -> float:
        return cuda_cost.estimate_fitting(self, workload, density, knobs, target)

    def tiling(self, workload: ConvWorkload, knobs: Knobs) -> WarpTiling | PairTiling:
        return tiles.tiling_of(workload, knobs)

    def chunk_dtype(self, knobs: Knobs) -> str:
        return tiles.chunk_dtype(knobs)

    def row_block_multiple(self, knobs: Knobs) -> int:
        return int(knobs["warps"]) * int(knobs["blocks_per_warp"])

    def row_order(self, workload: ConvWorkload, weight: NDArray, knobs: Knobs) -> NDArray[np.int32] | None:
        return tiles.row_order(workload, weight, knobs)

    def shared_bytes(self, tiling: WarpTiling | PairTiling, knobs: Knobs, entries: int) -> int:
        """Shared memory of a block whose row blocks have up to so many entries a chunk."""
        return tiles.staged_bytes(tiling, knobs, entries)

    def schedule(
        self, conv: DirectConv, tiling: WarpTiling | PairTiling, knobs: Knobs, target: Target
    ) -> tirx.PrimFunc:
        warps, per_warp = int(knobs["warps"]), int(knobs["blocks_per_warp"])
        shared_bytes = self.shared_bytes(tiling, knobs, conv.segment_entries)
        tiles.check_pairs(tiling.workload, knobs, conv.longest_row)
        tiles.check_block(tiling.workload, target, knobs, warps, shared_bytes)
        sch = s_tir.Schedule(conv.prim_func())
        stages.declare_reads(sch, tiling)
        declare_whole_read(sch, sch.get_sblock("out"), "part", dims=len(tiling.pixel_shape))
        sch.set_scope(sch.get_sblock("part"), 0, "local")
        block, inside = stages.cut_output(sch, tiling, warps, per_warp, tiles.vector_of(knobs))
        warp, *rest = inside.values()
        lanes, own = rest[:3], rest[3:]
        sch.bind(block, "blockIdx.x")
        sch.bind(warp, "threadIdx.y")
        threads = {"threadIdx.y": warps, "threadIdx.x": WARP}
        narrow_steps = knobs.get("pairs") == tiles.NARROW_STEPS
        chunk = stages.sum_nonzeros(sch, tiling, warp, int(knobs["pad_to"]), threads, narrow_steps)
        sch.bind(sch.fuse(*lanes), "threadIdx.x")
        stages.set_to_zero(sch, "part", chunk)
        interleaved = tiling if isinstance(tiling, PairTiling) and tiling.axis == "images" else None
        if interleaved is None:
            stages.copy_ahead(sch, chunk)
        for loop in own:
            sch.unroll(loop)
        func = bind_row_length(sch.mod["main"])
        if interleaved is not None:
            func = copy_pairs(func, interleaved, warps * per_warp)
        func = use_pairs(func)
        func = branch_copies(keep_own_lane(func, "part_local", dim=1 - len(tiling.pixel_shape)))
        return store_in_order(func)
