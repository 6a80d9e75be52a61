"""Template `cuda_pattern`: direct convolution on a GPU with the nonzeros of the filter as instructions.

    block = (row group of output channels, image, tile of pixels), thread = one pixel:
        for chunk of channels:
            tile := input of this tile and chunk                                               (shared memory)
            for every column that a channel of the group uses:                                 (straight-line code)
                x = tile[number + f];  part[v] += number * x  for every channel v that has it  (registers)
        out := activation(part + bias + residual)

No weight is loaded, and an input element once for all channels of the group: (1 - (1 - density)^m) / (density m) loads
a multiply-add, 0.3 for m = 32 channels at 10 %. What bounds it is the code: 21 bytes a nonzero, which a multiprocessor
keeps up to about 100 KB, so all tiles of a group come before the next group. A pointwise filter needs no tile: every
thread reads its own pixel.
"""

from __future__ import annotations

import math

from numpy.typing import NDArray
from tvm import s_tir, tirx
from tvm.target import Target

from tvm_sparse.compute.direct_conv import DirectConv
from tvm_sparse.compute.pattern_conv import (
    BYTES_PER_NONZERO,
    PatternFilter,
    PatternTiling,
    pad_filter,
    pattern_conv2d,
    reads_own_pixel,
)
from tvm_sparse.errors import InputError
from tvm_sparse.schedules import pattern_tile
from tvm_sparse.schedules.async_copy import COPY_BYTES, copy_ahead, mark_copy_ahead
from tvm_sparse.schedules.base import Kernel, Knobs, Template
from tvm_sparse.schedules.chunk_order import mark_rotated, rotate_chunks
from tvm_sparse.schedules.gpu_target import shared_limit, thread_limit
from tvm_sparse.schedules.pattern_code import evaluate_pattern, mark_pattern
from tvm_sparse.schedules.primitives import declare_whole_read
from tvm_sparse.schedules.storage import find_buffer, keep_resident, replace_buffer
from tvm_sparse.workload import ELEMENT_BYTES, ConvWorkload

#: What nvcc compiles in about a minute.
MOST_NONZEROS = 32_000
#: Blocks for every multiprocessor from which on the largest row groups are fastest.
FILLED = 0.7
#: Copies of a thread and chunk that are unrolled.
MOST_COPIES = 256
#: Threads of a block, and shared memory of its tiles, that leave room for several blocks a multiprocessor.
THREADS, STAGED_BYTES = 256, 64 * 1024


class CudaPattern(Template):
    name = "cuda_pattern"

    def applies(self, workload: ConvWorkload, target: Target) -> str | None:
        if target.kind.name != "cuda":
            return f"target {target.kind.name} is not a CUDA GPU"
        if workload.dtype not in ELEMENT_BYTES:
            return f"only {' and '.join(ELEMENT_BYTES)}, not {workload.dtype}"
        if thread_limit(target) < pattern_tile.WARP:
            return f"blocks of {thread_limit(target)} threads hold no warp"
        smallest = pattern_tile.smallest_bytes(workload)
        if smallest > shared_limit(target):
            return (
                f"one channel of the smallest tile takes {smallest} bytes of shared memory, of {shared_limit(target)}"
            )
        return None

    def too_much(self, workload: ConvWorkload, density: float) -> str | None:
        nonzeros = round(density * math.prod(workload.filter_shape))
        if nonzeros <= MOST_NONZEROS:
            return None
        return (
            f"template {self.name} makes code of {nonzeros} nonzeros, {MOST_NONZEROS} at most: choose another "
            "template or prune more"
        )

    def space(self, workload: ConvWorkload, target: Target) -> dict[str, tuple[int | str, ...]]:
        own = reads_own_pixel(workload)
        return {
            "images": tuple(images for images in pattern_tile.IMAGES if images <= workload.n),
            "rows": pattern_tile.tile_widths(workload.p),
            "cols": (*pattern_tile.tile_widths(workload.q), *((64, 128, 256) if own else ())),
            "channels": tuple(sorted({-(-workload.c_per_group // 2**halvings) for halvings in range(8)})),
            "rows_per_group": pattern_tile.row_groups(workload),
            "stages": ((0,) if own else ()) + ((1, 2) if _copies_ahead(workload, target) else (1,)),
            "order": ("groups", "tiles"),
            "blocks_per_sm": (0, 2, 3, 4),
            "rotate": (0, 1),
        }

    def default(self, workload: ConvWorkload, density: float, target: Target) -> dict[str, int | str]:
        own, budget = reads_own_pixel(workload), min(STAGED_BYTES, shared_limit(target))
        threads = min(THREADS, thread_limit(target))
        tile = (1, 1, threads) if own else pattern_tile.best_tile(workload, threads, budget)
        code = BYTES_PER_NONZERO * density * math.prod(workload.filter_shape)
        group = pattern_tile.most_rows(workload, code)
        pixels = workload.n * workload.p * workload.q
        filled = pixels * -(-workload.k // group) >= FILLED * pattern_tile.PROCESSORS * threads
        if not filled:
            group = pattern_tile.best_rows(workload, density, tile, not own)
        threads = pattern_tile.fill(workload, group, threads)
        channels, stages = workload.c_per_group, 0
        if not own:
            tile = pattern_tile.best_tile(workload, threads, budget)
            one = pattern_tile.shared_bytes(PatternTiling(workload, *tile, 1, group), 1)
            stages = 2 if _copies_ahead(workload, target) and 2 * one <= budget else 1
            channels = pattern_tile.channels_within(workload, tile, stages, budget)
            stages = stages if channels < workload.c_per_group else 1
        images, rows, cols = (1, 1, threads) if own else tile
        return {
            "images": images,
            "rows": rows,
            "cols": cols,
            "channels": channels,
            "rows_per_group": group,
            "stages": stages,
            "order": "groups" if code > pattern_tile.CACHED_CODE_BYTES else "tiles",
            "blocks_per_sm": pattern_tile.resident_blocks(group, not own) if filled else 0,
            "rotate": 0,
        }

    def tiling(self, workload: ConvWorkload, knobs: Knobs) -> PatternTiling:  # type: ignore[override]
        images, rows, cols = int(knobs["images"]), int(knobs["rows"]), int(knobs["cols"])
        channels, group = int(knobs["channels"]), int(knobs["rows_per_group"])
        return PatternTiling(workload, images, rows, cols, channels, group, staged=int(knobs["stages"]) > 0)

    def shared_bytes(self, tiling: PatternTiling, knobs: Knobs) -> int:
        """Shared memory of a block."""
        return pattern_tile.shared_bytes(tiling, int(knobs["stages"]))

    def kernel(self, workload: ConvWorkload, weight: NDArray, target: Target, knobs: Knobs | None = None) -> Kernel:
        """Schedule the convolution and write the nonzeros of `weight` into it.

        Raises
        ------
        InputError
            As Template.kernel.
        """
        chosen = self.checked_knobs(workload, weight, target, knobs)
        tiling = self.tiling(workload, chosen)
        scheduled = self.schedule(pattern_conv2d(tiling), tiling, chosen, target)
        func = evaluate_pattern(scheduled, pad_filter(weight, tiling), tiling.rows_per_group, tiling.channels)
        if int(chosen["rotate"]):
            func = rotate_chunks(func, pattern_tile.PROCESSORS)
        if int(chosen["stages"]) == 2:
            func = copy_ahead(func, find_buffer(func, "tile_shared.dyn"))
        if blocks := int(chosen["blocks_per_sm"]):
            func = keep_resident(func, blocks)
        return self.finished(workload, chosen, func, PatternFilter(int((weight != 0).sum())))

    def schedule(self, conv: DirectConv, tiling: PatternTiling, knobs: Knobs, target: Target) -> tirx.PrimFunc:
        """The schedule of any filter of this shape, its parameter "weight" still to be evaluated."""
        self._check(tiling, knobs, target)
        sch = s_tir.Schedule(conv.prim_func())
        part, out = sch.get_sblock("part"), sch.get_sblock("out")
        declare_whole_read(sch, out, "part", dims=2)
        sch.set_scope(part, 0, "local")

        if tiling.staged:
            image, k, p, q = sch.get_loops(out)
            tile_image, image = sch.split(image, [None, tiling.images])
            tile_row, row = sch.split(p, [None, tiling.rows])
            tile_col, col = sch.split(q, [None, tiling.cols])
            tiles, pixels = [tile_image, tile_row, tile_col], [image, row, col]
        else:
            rows, cols = tiling.workload.p, tiling.workload.q
            sch.transform_block_layout(out, lambda i, k, p, q: (k, (i * rows + p) * cols + q))
            k, pixel = sch.get_loops(out)
            tile, pixel = sch.split(pixel, [None, tiling.pixels])
            tiles, pixels = [tile], [pixel]
        group, v = sch.split(k, [None, tiling.rows_per_group])
        outer = [group, *tiles] if knobs["order"] == "groups" else [*tiles, group]
        sch.reorder(*outer, *pixels, v)
        block = sch.fuse(*outer)
        sch.bind(block, "blockIdx.x")

        sch.compute_at(part, block, preserve_unit_loops=True)
        *_, sums, f, chunk, c, r, s = sch.get_loops(part)
        sch.reorder(f, chunk, sums, c, r, s)
        sch.bind(f, "threadIdx.x")
        if tiling.staged:
            self._stage(sch, tiling, chunk)
        init = sch.decompose_reduction(part, chunk)
        sch.unroll(sch.get_loops(init)[-1])
        sch.bind(sch.fuse(*pixels), "threadIdx.x")
        sch.unroll(v)
        mark_pattern(sch, sums)
        if int(knobs["rotate"]):
            mark_rotated(sch, chunk)
        if int(knobs["stages"]) == 2:
            mark_copy_ahead(sch, chunk)
        return _own_storage(sch.mod["main"], tiling, int(knobs["stages"]))

    def _stage(self, sch: s_tir.Schedule, tiling: PatternTiling, chunk: object) -> None:
        """Copy the tile at every chunk; a thread computes an address once for all interleaved planes."""
        tile = sch.get_sblock("tile")
        declare_whole_read(sch, sch.get_sblock("part"), "tile")
        sch.set_scope(tile, 0, "shared.dyn")
        sch.compute_at(tile, chunk, preserve_unit_loops=True)
        plane, place = sch.split(sch.get_loops(tile)[-1], [tiling.planes, tiling.plane])
        step, thread = sch.split(place, [None, tiling.pixels])
        sch.reorder(step, thread, plane)
        sch.bind(thread, "threadIdx.x")
        if tiling.elements <= MOST_COPIES * tiling.pixels:
            sch.unroll(step)
            sch.unroll(plane)

    def _check(self, tiling: PatternTiling, knobs: Knobs, target: Target) -> None:
        workload, group = tiling.workload, tiling.rows_per_group
        limits = {
            "threads a block": (tiling.pixels, thread_limit(target)),
            "bytes of shared memory a block": (self.shared_bytes(tiling, knobs), shared_limit(target)),
            "sums a thread": (group, pattern_tile.MOST_SUMS),
        }
        for what, (needed, allowed) in limits.items():
            if needed > allowed:
                raise InputError(f"{workload}: knobs {dict(knobs)}: {needed} {what}, {allowed} at most")
        if workload.groups > 1 and workload.k_per_group % group:
            raise InputError(f"{workload}: knobs {dict(knobs)}: {group} output channels reach over two groups")
        if int(knobs["stages"]) == 2 and not _copies_ahead(workload, target):
            raise InputError(f"{workload}: knobs {dict(knobs)}: two stages need elements of 4 bytes and sm_80")
        if int(knobs["rotate"]) and tiling.chunks % max(1, int(knobs["stages"])):
            raise InputError(f"{workload}: knobs {dict(knobs)}: {tiling.chunks} chunks cannot rotate in pairs")


def _own_storage(func: tirx.PrimFunc, tiling: PatternTiling, stages: int) -> tirx.PrimFunc:
    """Sums of a thread in a buffer of its own; `stages` tiles of a block in turn, one behind the other."""
    sums = tirx.decl_buffer((tiling.rows_per_group,), "float32", "part_local", scope="local")
    func = replace_buffer(func, find_buffer(func, "part_local"), sums, lambda at: [at[4]])
    if not tiling.staged:
        return func
    old = find_buffer(func, "tile_shared.dyn")
    tile = tirx.decl_buffer((stages * tiling.elements,), old.dtype, old.name, scope=old.scope())
    return replace_buffer(func, old, tile, lambda at: [at[4] % stages * tiling.elements + at[5]])


def _copies_ahead(workload: ConvWorkload, target: Target) -> bool:
    """Whether elements are as large as the smallest asynchronous copy, and the GPU has it."""
    version = "".join(filter(str.isdigit, str(target.attrs.get("arch", ""))))
    return ELEMENT_BYTES[workload.dtype] == COPY_BYTES and int(version or 0) >= 80
