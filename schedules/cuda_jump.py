"""Template `cuda_jump`: direct convolution on a GPU with the filter as programs, one jump for every nonzero.

    block = (images, group, tile of pixels, output channels):
        for chunk of channels:
            tile, programs := input of this tile, programs of the block's row blocks, in this chunk   (shared memory)
            warp = a row block of `rows` output channels, lane = pixel, thread = its own pixels f:
                for every window of the program: x := its inputs                                      (registers)
                    for every nonzero of the window, (tap, v): jump to part[v, f] += number * x[...]  (registers)
        out := activation(part + bias + residual)

Registers cannot be indexed, so that a kernel whose filter is data reads every operand from shared memory: its bound
(cuda_pixel). Code can name them, but with the nonzeros as code (cuda_pattern) large filters do not fit the instruction
cache. Here the code is (taps of a window) x rows pieces of a few multiply-adds each, whatever the filter, which says in
which order to run them. An input is read once for all taps and output channels that use it:

    loads of a window / (nonzeros of a window x pixels) + 1 / pixels    loads a multiply-add
    1 + 1 / pixels                                                      those of cuda_pixel

What it costs is a jump for every nonzero, whose target is read from constant memory; other warps run meanwhile, and the
pixels of a thread share it. The chunks are dealt out to `splits` warps, whose sums the block adds in shared memory.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray
from tvm import s_tir, tirx
from tvm.target import Target

from tvm_sparse.compute.direct_conv import DirectConv, direct_conv2d
from tvm_sparse.compute.jump_filter import Window, jump_filter
from tvm_sparse.compute.warp_tiling import WarpTiling
from tvm_sparse.schedules import cuda_stages as stages
from tvm_sparse.schedules import cuda_tiles as tiles
from tvm_sparse.schedules import jump_cost
from tvm_sparse.schedules.async_copy import copy_buffers_ahead, mark_copy_buffers_ahead
from tvm_sparse.schedules.base import Kernel, Knobs, Template
from tvm_sparse.schedules.copy_tests import branch_copies
from tvm_sparse.schedules.gpu_target import copies_asynchronously, shared_limit
from tvm_sparse.schedules.jump_code import evaluate_jumps, mark_jumps
from tvm_sparse.schedules.primitives import declare_whole_read
from tvm_sparse.schedules.storage import find_buffer, replace_buffer
from tvm_sparse.schedules.warp_sums import sum_alone, sum_together
from tvm_sparse.workload import ConvWorkload

#: What a block stages for a chunk, in the order of copying.
STAGED = ("rows", "program", "tile")


class CudaJump(Template):
    name = "cuda_jump"

    def applies(self, workload: ConvWorkload, target: Target) -> str | None:
        if reason := tiles.why_not(workload, target):
            return reason
        if workload.dtype != "float32":
            return f"only float32, not {workload.dtype}"
        if not copies_asynchronously(target):
            return "its copies need sm_80 or later"
        smallest, limit = jump_cost.smallest_bytes(workload), shared_limit(target)
        if smallest > limit:
            return (
                f"one channel of the smallest tile and its programs take {smallest} bytes of shared memory, of {limit}"
            )
        if workload.groups > 1 and workload.k_per_group % min(jump_cost.ROWS):
            return f"{workload.k_per_group} output channels a group are no multiple of {min(jump_cost.ROWS)}"
        return None

    def space(self, workload: ConvWorkload, target: Target) -> dict[str, tuple[int | str, ...]]:
        return {
            **tiles.shape_space(workload),
            "rows": jump_cost.row_counts(workload),
            "warps": jump_cost.warp_counts(workload),
            "splits": jump_cost.splits(workload),
            "jumps": jump_cost.JUMPS,
        }

    def default(self, workload: ConvWorkload, density: float, target: Target) -> dict[str, int | str]:
        return jump_cost.cheapest(workload, density, target)

    def estimate_us(self, workload: ConvWorkload, density: float, knobs: Knobs, target: Target) -> float:
        return jump_cost.estimate_fitting(workload, density, knobs, target)

    def smaller(self, workload: ConvWorkload, knobs: Knobs) -> dict[str, int | str] | None:
        """Fewer channels a chunk, where a filter's programs take more room than evenly spread nonzeros would."""
        return {**knobs, "channels": -(-int(knobs["channels"]) // 2)} if int(knobs["channels"]) > 1 else None

    def tiling(self, workload: ConvWorkload, knobs: Knobs) -> WarpTiling:
        return jump_cost.tiling_of(workload, knobs)

    def shared_bytes(self, tiling: WarpTiling, knobs: Knobs, instructions: int) -> int:
        return jump_cost.shared_bytes(tiling, knobs, instructions)

    def _kernel(self, workload: ConvWorkload, weight: NDArray, target: Target, chosen: dict[str, int | str]) -> Kernel:
        tiling = self.tiling(workload, chosen)
        constants = jump_filter(weight, tiling, int(chosen["rows"]), int(chosen["warps"]))
        func = self.schedule(direct_conv2d(tiling, constants), tiling, chosen, target)
        return self.finished(workload, chosen, func, constants)

    def schedule(self, conv: DirectConv, tiling: WarpTiling, knobs: Knobs, target: Target) -> tirx.PrimFunc:
        jump_cost.check_block(tiling, knobs, conv.segment_entries, target)
        rows, warps, splits = int(knobs["rows"]), int(knobs["warps"]), tiling.splits
        sch = s_tir.Schedule(conv.prim_func())
        part = sch.get_sblock("part")
        declare_whole_read(sch, part, "tile", dims=2 if tiling.copy_width > 1 else 1)
        declare_whole_read(sch, part, "program", dims=2)
        stored = sch.cache_write(part, 0, "local") if splits > 1 else None
        block, inside = stages.cut_output(sch, tiling, warps, 1, rows)
        warp, *lanes, kb, v, image, row, col = inside.values()
        # Output channels innermost: their number is a multiple of the workers' more often than that of pixels is.
        own = [image, row, col, kb, v]
        sch.reorder(*own)
        sch.bind(block, "blockIdx.x")
        if stored is None:
            chunk = sum_alone(sch, tiling, warp, [*lanes, *own], warps, _sum)
        else:
            chunk = sum_together(sch, tiling, stored, block, warp, [*lanes, *own], warps, _sum)
        mark_copy_buffers_ahead(sch, chunk)
        func = branch_copies(_own_storage(sch.mod["main"], tiling, warps))
        return copy_buffers_ahead(evaluate_jumps(func, Window.of(tiling), rows, int(knobs["jumps"])))


def _sum(sch: s_tir.Schedule, tiling: WarpTiling, loop: Any, threads: dict[str, int]) -> Any:
    """Compute "part" in registers below `loop`, input and programs staged; returns the loop over chunks."""
    part = sch.get_sblock("part")
    sch.compute_at(part, loop, preserve_unit_loops=True)
    *outside, kb, v, _, _, own, lane, chunk, j = sch.get_loops(part)
    sch.reorder(lane, chunk, kb, j, v, own)
    sch.bind(lane, "threadIdx.x")
    above = len([*outside, lane, chunk])
    for name in STAGED:
        index = next(n for n, read in enumerate(sch.get(part).reads) if read.source.name == name)
        staged = sch.get_sblock("tile") if name == "tile" else sch.cache_read(part, index, stages.SHARED)
        sch.set_scope(staged, 0, stages.SHARED)
        sch.compute_at(staged, chunk, preserve_unit_loops=True)
        *outer, run = sch.get_loops(staged)[above:]
        if name == "program" or (name == "tile" and tiling.copy_width > 1):
            run = sch.fuse(outer.pop(), run)
        if name == "tile":
            stages.share_copy(sch, outer, run, *tiling.copy_shape, tiling.copy_width, threads)
        else:
            width = 1 if name == "rows" else stages.WIDEST_COPY
            stages.share_copy(sch, outer, run, 1, int(sch.get(run).extent), width, threads)
    mark_jumps(sch, j)
    return chunk


def _own_storage(func: tirx.PrimFunc, tiling: WarpTiling, warps: int) -> tirx.PrimFunc:
    """Sums of a thread in a buffer of its own, and what is staged in buffers for two chunks of every worker."""
    sums = find_buffer(func, "part_local")
    own = tirx.decl_buffer((sums.shape[3], sums.shape[6]), sums.dtype, sums.name, scope="local")
    func = replace_buffer(func, sums, own, lambda at: [at[3], at[6]])
    slots = 2 * tiling.splits
    places = {
        "rows": lambda at: [at[0] % slots, at[1] % warps],
        "program": lambda at: [at[0] % slots, *at[2:]],
        "tile": lambda at: [at[4] % slots, *at[5:]],
    }
    for name, place in places.items():
        old = find_buffer(func, f"{name}_{stages.SHARED}")
        inside = (warps,) if name == "rows" else old.shape[2:] if name == "program" else old.shape[5:]
        new = tirx.decl_buffer((slots, *inside), old.dtype, old.name, scope=old.scope())
        func = replace_buffer(func, old, new, place)
    return func
