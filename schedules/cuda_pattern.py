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
thread reads its own pixel, or a pair of 16-bit ones, which it sums

- in float32, or
- both at once in float16 within a chunk of channels, the chunks in float32: a relative error of 5e-4 to 1.6e-3.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from tvm import s_tir, tirx
from tvm.target import Target

from tvm_sparse.compute.direct_conv import DirectConv
from tvm_sparse.compute.pair_tiling import PAIR, pair_axis, words_of
from tvm_sparse.compute.pattern_conv import (
    BYTES_PER_NONZERO,
    PatternFilter,
    PatternTiling,
    pad_filter,
    pattern_conv2d,
    reads_own_pixel,
)
from tvm_sparse.errors import InputError
from tvm_sparse.schedules import cuda_tiles as tiles
from tvm_sparse.schedules import pattern_tile
from tvm_sparse.schedules.async_copy import COPY_BYTES, copy_ahead, mark_copy_ahead
from tvm_sparse.schedules.base import Kernel, Knobs, Template
from tvm_sparse.schedules.chunk_order import mark_rotated, rotate_chunks
from tvm_sparse.schedules.gpu_target import copies_asynchronously, shared_limit, thread_limit
from tvm_sparse.schedules.pattern_code import evaluate_pattern, mark_pattern
from tvm_sparse.schedules.primitives import declare_whole_read
from tvm_sparse.schedules.storage import find_buffer, keep_resident, replace_buffer
from tvm_sparse.workload import ELEMENT_BYTES, ConvWorkload

#: What nvcc compiles in a few seconds (100,000 take 20); a few pixels do not even pay for loading so much code.
MOST_NONZEROS, MOST_NONZEROS_OF_FEW, FEW_PIXELS = 32_000, 16_000, 6_000
#: Blocks for every multiprocessor from which on the largest row groups are fastest.
FILLED = 0.7
#: Nonzeros of a row and chunk, of those that may be summed in float16, that leave room for rows with more.
HALF_SUMMED = 30
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
        few = workload.n * workload.p * workload.q < FEW_PIXELS
        most = MOST_NONZEROS_OF_FEW if few else MOST_NONZEROS
        if nonzeros <= most:
            return None
        return (
            f"template {self.name} makes code of {nonzeros} nonzeros, {most} at most{' for so few pixels' * few}: "
            "choose another template or prune more"
        )

    def space(self, workload: ConvWorkload, target: Target) -> dict[str, tuple[int | str, ...]]:
        own = reads_own_pixel(workload)
        pairs = tuple(pairs for pairs in tiles.pair_options(workload) if pairs != tiles.NARROW_STEPS)
        return {
            "images": tuple(images for images in pattern_tile.IMAGES if images <= workload.n),
            "rows": pattern_tile.tile_widths(workload.p),
            "cols": (*pattern_tile.tile_widths(workload.q), *((64, 128, 256) if own else ())),
            "channels": tuple(sorted({-(-workload.c_per_group // 2**halvings) for halvings in range(8)})),
            "rows_per_group": pattern_tile.row_groups(workload),
            "stages": ((0,) if own else ()) + ((1, 2) if _copies_ahead(workload, target) else (1,)),
            "order": ("groups", "tiles"),
            "blocks_per_sm": (0, 1, 2, 3, 4),
            "rotate": (0, 1),
            "fresh_places": (0, 1) if _copies_ahead(workload, target) else (0,),
            **({"pairs": pairs} if pairs else {}),
        }

    def default(self, workload: ConvWorkload, density: float, target: Target) -> dict[str, int | str]:
        pairs = self._default_pairs(workload, density)
        paired = pairs.get("pairs", tiles.NO_PAIRS) != tiles.NO_PAIRS
        own = reads_own_pixel(workload) and not (paired and pair_axis(workload) == "images")
        budget = min(STAGED_BYTES, shared_limit(target))
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
        layout = workload
        if paired:
            # A tile that is staged comes in chunks, whose sums in float32 take two registers more for each in float16.
            group = min(group, pattern_tile.MOST_SUMS // PAIR, *(() if own else (pattern_tile.FEW_SUMS // PAIR,)))
            threads = max(pattern_tile.WARP, threads // PAIR) if own else threads
            row = density * workload.c_per_group * workload.r * workload.s
            channels = -(-workload.c_per_group // max(1, math.ceil(row / HALF_SUMMED)))
            layout = words_of(workload)
        if not own:
            tile = pattern_tile.best_tile(layout, threads, budget)
            one = pattern_tile.shared_bytes(PatternTiling(layout, *tile, 1, group), 1)
            stages = 2 if _copies_ahead(workload, target) and 2 * one <= budget else 1
            channels = min(channels, pattern_tile.channels_within(layout, tile, stages, budget))
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
            "blocks_per_sm": pattern_tile.resident_blocks(group, not own, paired) if filled else 0,
            "rotate": 0,
            "fresh_places": int(_copies_ahead(workload, target)),
            **pairs,
        }

    @staticmethod
    def _default_pairs(workload: ConvWorkload, density: float) -> dict[str, int | str]:
        """Pairs summed in float16, which were faster on every layer measured; those summed in float32 were not."""
        pairs = tiles.default_pairs(workload, density)
        return {"pairs": tiles.NO_PAIRS} if pairs and tiles.chunk_dtype(pairs) != "float16" else pairs

    def tiling(self, workload: ConvWorkload, knobs: Knobs) -> PatternTiling:  # type: ignore[override]
        images, rows, cols = int(knobs["images"]), int(knobs["rows"]), int(knobs["cols"])
        channels, group = int(knobs["channels"]), int(knobs["rows_per_group"])
        staged, paired = int(knobs["stages"]) > 0, knobs.get("pairs", tiles.NO_PAIRS) != tiles.NO_PAIRS
        return PatternTiling(workload, images, rows, cols, channels, group, staged, paired)

    def shared_bytes(self, tiling: PatternTiling, knobs: Knobs) -> int:
        """Shared memory of a block."""
        return pattern_tile.shared_bytes(tiling, int(knobs["stages"]))

    def smaller(self, workload: ConvWorkload, knobs: Knobs) -> dict[str, int | str] | None:
        """Fewer channels a chunk, where one has more nonzeros than may be summed in float16."""
        if tiles.chunk_dtype(knobs) != "float16":
            return None
        return {**knobs, "channels": -(-int(knobs["channels"]) // 2)} if int(knobs["channels"]) > 1 else None

    def _kernel(self, workload: ConvWorkload, weight: NDArray, target: Target, chosen: dict[str, int | str]) -> Kernel:
        """Schedule the convolution and write the nonzeros of `weight` into it."""
        tiling = self.tiling(workload, chosen)
        scheduled = self.schedule(pattern_conv2d(tiling), tiling, chosen, target)
        numbers, chunk_dtype = pad_filter(weight, tiling), tiles.chunk_dtype(chosen)
        in_chunk = np.count_nonzero(numbers.reshape(len(numbers), tiling.chunks, -1), axis=2)
        tiles.check_pairs(workload, chosen, int(in_chunk.max()))
        func = evaluate_pattern(scheduled, numbers, tiling.rows_per_group, tiling.channels, chunk_dtype)
        if int(chosen["rotate"]):
            func = rotate_chunks(func, pattern_tile.PROCESSORS)
        if int(chosen["stages"]) == 2:
            func = copy_ahead(func, find_buffer(func, "tile_shared.dyn"), bool(chosen["fresh_places"]))
        func = keep_resident(func, int(chosen["blocks_per_sm"]))
        return self.finished(workload, chosen, func, PatternFilter(int((weight != 0).sum())))

    def schedule(self, conv: DirectConv, tiling: PatternTiling, knobs: Knobs, target: Target) -> tirx.PrimFunc:
        """The schedule of any filter of this shape, its parameter "weight" still to be evaluated."""
        self._check(tiling, knobs, target)
        sch = s_tir.Schedule(conv.prim_func())
        part, out = sch.get_sblock("part"), sch.get_sblock("out")
        declare_whole_read(sch, out, "part", dims=3 if tiling.paired else 2)
        sch.set_scope(part, 0, "local")

        if tiling.staged:
            image, k, p, q = sch.get_loops(out)
            tile_image, image, *pair = sch.split(image, [None, tiling.images, *([PAIR] if tiling.paired else [])])
            tile_row, row = sch.split(p, [None, tiling.rows])
            tile_col, col = sch.split(q, [None, tiling.cols])
            outer, pixels = [tile_image, tile_row, tile_col], [image, row, col]
        else:
            rows, cols = tiling.workload.p, tiling.workload.q
            sch.transform_block_layout(out, lambda i, k, p, q: (k, (i * rows + p) * cols + q))
            k, pixel = sch.get_loops(out)
            tile, pixel, *pair = sch.split(pixel, [None, tiling.pixels, *([PAIR] if tiling.paired else [])])
            outer, pixels = [tile], [pixel]
        group, v = sch.split(k, [None, tiling.rows_per_group])
        outer = [group, *outer] if knobs["order"] == "groups" else [*outer, group]
        sch.reorder(*outer, *pixels, v, *pair)
        block = sch.fuse(*outer)
        sch.bind(block, "blockIdx.x")

        sch.compute_at(part, block, preserve_unit_loops=True)
        *_, sums, f = sch.get_loops(part)[: -4 - len(pair)]
        *of_pair, chunk, c, r, s = sch.get_loops(part)[-4 - len(pair) :]
        sch.reorder(f, chunk, sums, *of_pair, c, r, s)
        sch.bind(f, "threadIdx.x")
        if tiling.staged:
            self._stage(sch, tiling, chunk)
        init = sch.decompose_reduction(part, chunk)
        for loop in sch.get_loops(init)[-1 - len(pair) :]:
            sch.unroll(loop)
        sch.bind(sch.fuse(*pixels), "threadIdx.x")
        sch.unroll(v)
        for loop in pair:
            (sch.unroll if tiling.staged else sch.vectorize)(loop)
        mark_pattern(sch, sums)
        if int(knobs["rotate"]):
            mark_rotated(sch, chunk)
        if int(knobs["stages"]) == 2:
            mark_copy_ahead(sch, chunk)
        return _own_storage(sch.mod["main"], tiling, int(knobs["stages"]))

    def _stage(self, sch: s_tir.Schedule, tiling: PatternTiling, chunk: object) -> None:
        """Copy the tile at every chunk; a thread computes an address once for all interleaved planes."""
        tile = sch.get_sblock("tile")
        declare_whole_read(sch, sch.get_sblock("part"), "tile", dims=2 if tiling.paired else 1)
        sch.set_scope(tile, 0, "shared.dyn")
        sch.compute_at(tile, chunk, preserve_unit_loops=True)
        loops = sch.get_loops(tile)
        pair = [loops[-1]] if tiling.paired else []
        plane, place = sch.split(loops[-1 - len(pair)], [tiling.planes, tiling.plane])
        step, thread = sch.split(place, [None, tiling.pixels])
        sch.reorder(step, thread, plane, *pair)
        for loop in pair:
            # Of an odd number of images the last has no other: a test of its own.
            (sch.unroll if tiling.workload.n % PAIR else sch.vectorize)(loop)
        sch.bind(thread, "threadIdx.x")
        if tiling.elements <= MOST_COPIES * tiling.pixels:
            sch.unroll(step)
            sch.unroll(plane)

    def _check(self, tiling: PatternTiling, knobs: Knobs, target: Target) -> None:
        workload, group = tiling.workload, tiling.rows_per_group
        limits = {
            "threads a block": (tiling.pixels, thread_limit(target)),
            "bytes of shared memory a block": (self.shared_bytes(tiling, knobs), shared_limit(target)),
            "sums a thread": (group * tiling.pair, pattern_tile.MOST_SUMS),
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
    of_pair = [tiling.pair] if tiling.paired else []
    sums = tirx.decl_buffer((tiling.rows_per_group, *of_pair), "float32", "part_local", scope="local")
    func = replace_buffer(func, find_buffer(func, "part_local"), sums, lambda at: [at[4], *at[6:]])
    if not tiling.staged:
        return func
    old = find_buffer(func, "tile_shared.dyn")
    elements = pattern_tile.staged_elements(tiling, stages)
    if tiling.paired:
        tile = tirx.decl_buffer((elements // PAIR, PAIR), old.dtype, old.name, scope=old.scope())
        return replace_buffer(func, old, tile, lambda at: at[5:])
    tile = tirx.decl_buffer((elements,), old.dtype, old.name, scope=old.scope())
    return replace_buffer(func, old, tile, lambda at: [at[4] % stages * tiling.elements + at[5]])


def _copies_ahead(workload: ConvWorkload, target: Target) -> bool:
    """Whether elements are as large as the smallest asynchronous copy, and the GPU has it."""
    return ELEMENT_BYTES[workload.dtype] == COPY_BYTES and copies_asynchronously(target)
