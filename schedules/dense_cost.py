"""What a kernel of `cuda_dense` would cost, and the knobs that cost least: for layers that were never tuned.

A column of the filter costs a warp `pixels` loads, fewer where the windows of adjacent rows overlap, and vector / 4
broadcast loads of shared memory, and vector x pixels multiply-adds, of which a multiprocessor starts four a cycle. On
top come the copies into shared memory, what is paid per chunk, and multiprocessors without work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from tvm.target import Target

from tvm_sparse.compute.warp_tiling import WARP, WarpTiling
from tvm_sparse.errors import InputError
from tvm_sparse.schedules import cuda_cost, cuda_tiles
from tvm_sparse.schedules.base import Knobs
from tvm_sparse.schedules.gpu_target import shared_limit, thread_limit
from tvm_sparse.workload import ELEMENT_BYTES, ConvWorkload

#: Output channels of a warp, warps of a block side by side, warps that share the input channels of a pixel.
VECTORS, WARPS, SPLITS = (4, 8, 16), (1, 2, 3, 4, 6, 8, 12, 16), (1, 2, 4, 8, 16)
#: Buffers for a chunk, and blocks of a multiprocessor that nvcc may be told to leave registers for.
BUFFERS, RESIDENT = (1, 2), (0, 1, 2, 3, 4, 5, 6)
#: Warps of a block, at most.
MOST_WARPS = 16
#: Registers of a thread that hold no sums.
OTHER_REGISTERS = 40
#: Sums of a thread in a default schedule: more leave too few warps to hide latency.
DEFAULT_SUMS = 64
#: Cycles of shared memory for a weight that all lanes load; schedulers of a multiprocessor; cycles a warp waits a tap.
WEIGHT_LOAD, SCHEDULERS, STALL = 0.53, 4, 45
#: Instructions to work out a place of a tile, for all channels of a chunk; the part of copies that nothing hides.
PLACE_INSTRUCTIONS, COPY_INSTRUCTIONS, OVERLAPPED = 60, 4, 0.9
#: The same for a tile that is copied row by row.
ROW_INSTRUCTIONS = 18
#: The part of the loads that does not run beside the multiply-adds, or of those beside the loads.
BESIDE = 0.3
#: Elements that are stored together, and cycles of every such store of a warp that is on its own.
SECTOR, SECTOR_CYCLES = 8, 3
#: What a warp that lies across images takes longer, for every doubling of them.
SEVERAL_IMAGES = 0.1
#: What blocks take longer that a multiprocessor holds one by one, so that nothing is summed at their barriers.
ALONE = 1.15
#: Of a sum.
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Block:
    """A block of threads: `warps` side by side of `vector` output channels each, `buffers` of input and filter, and how
    many blocks nvcc is to leave registers for on a multiprocessor (0: as many as it likes)."""

    warps: int
    vector: int
    buffers: int = 2
    per_sm: int = 0

    @classmethod
    def of(cls, knobs: Knobs) -> Block:
        return cls(*(int(knobs[name]) for name in ("warps", "vector", "buffers", "blocks_per_sm")))

    @property
    def rows(self) -> int:
        """Output channels."""
        return self.warps * self.vector


def shared_bytes(tiling: WarpTiling, block: Block) -> int:
    """Shared memory of a block: buffers of input and filter for every split, and the sums of the splits."""
    workload, align = tiling.workload, cuda_tiles.BUFFER_ALIGNMENT
    weights = tiling.channels * workload.r * workload.s * block.rows
    size = ELEMENT_BYTES[workload.dtype]
    parts = [block.buffers * tiling.splits * count * size for count in (tiling.elements, weights)]
    if tiling.splits > 1:
        parts.append(tiling.splits * block.rows * math.prod(tiling.pixels) * WARP * FLOAT_BYTES)
    return sum(-(-part // align) * align for part in parts)


def check_block(tiling: WarpTiling, block: Block, target: Target) -> None:
    """Refuse what a block cannot hold.

    Raises
    ------
    InputError
        Too many threads or registers, too much shared memory, half of the channels idle, a block that reaches over two
        groups, or splits that cannot share the sums evenly.
    """
    workload, pixels, rows = tiling.workload, math.prod(tiling.pixels), block.rows
    threads = block.warps * tiling.splits * WARP
    limits = {
        "threads a block": (threads, thread_limit(target)),
        "bytes of shared memory a block": (shared_bytes(tiling, block), shared_limit(target)),
        "sums a thread": (pixels * block.vector, cuda_tiles.MOST_SUMS),
        "registers a block": ((pixels * block.vector + OTHER_REGISTERS) * threads, cuda_tiles.REGISTERS),
        "threads of resident blocks": (max(1, block.per_sm) * threads, cuda_cost.THREADS),
    }
    what = f"{workload}: {tiling}, {block.warps} warps of {block.vector} channels"
    for name, (needed, allowed) in limits.items():
        if needed > allowed:
            raise InputError(f"{what}: {needed} {name}, {allowed} at most")
    if rows >= 2 * workload.k_per_group and block.warps > 1:
        raise InputError(f"{what}: half a block's {rows} channels would be idle")
    if workload.groups > 1 and workload.k_per_group % rows:
        raise InputError(f"{what}: a block of {rows} channels reaches over two groups")
    if not cuda_tiles.shared_evenly((block.vector, *tiling.pixels), tiling.splits):
        raise InputError(f"{what}: {tiling.splits} warps cannot share {pixels * block.vector} sums evenly")


def _resident(tiling: WarpTiling, block: Block, registers: int) -> int:
    """Blocks that a multiprocessor holds at a time, with so many registers a thread."""
    threads = block.warps * tiling.splits * WARP
    return min(
        cuda_cost.SHARED_BYTES // shared_bytes(tiling, block),
        cuda_tiles.REGISTERS // (registers * threads),
        cuda_cost.THREADS // threads,
    )


def estimate_us(tiling: WarpTiling, block: Block) -> float:
    """Microseconds of a kernel."""
    warps, vector = block.warps, block.vector
    workload, pixels, splits = tiling.workload, math.prod(tiling.pixels), tiling.splits
    taps = tiling.channels * workload.r * workload.s
    all_warps, chunks = warps * splits, tiling.chunks // splits
    row_groups = workload.groups * -(-workload.k_per_group // block.rows)
    each = -(-math.prod(tiling.grid) * row_groups // cuda_cost.MULTIPROCESSORS)
    loaded = pixels * window(tiling)
    resident = _resident(tiling, block, pixels * vector + OTHER_REGISTERS)
    together = min(max(1, resident), each)

    # A scheduler starts one instruction a cycle, of another warp while one waits for its loads.
    loads = loaded * tiling.conflicts + vector * WEIGHT_LOAD
    size = ELEMENT_BYTES[workload.dtype]
    converted = pixels + vector if size < FLOAT_BYTES else 0
    started = pixels * vector + loaded + vector / 4 + 1 + converted
    share = together * all_warps / SCHEDULERS
    a_scheduler = math.ceil(share)
    issue = max(started, (started + STALL) / a_scheduler) * a_scheduler / share / SCHEDULERS
    tap = max(loads, issue) + BESIDE * min(loads, issue)
    summing = each * all_warps * chunks * taps * tap

    width = tiling.copy_width * size
    places = tiling.elements / tiling.copy_width / WARP
    each_place = ROW_INSTRUCTIONS if by_rows(tiling) else COPY_INSTRUCTIONS + PLACE_INSTRUCTIONS / tiling.channels
    instructions = places * each_place / SCHEDULERS
    tile = max(tiling.elements * size / cuda_cost.COPY_RATE[min(16, width)], instructions)
    weights = taps * warps * vector * size / cuda_cost.COPY_RATE[16]
    hidden = together > 1 or (block.buffers > 1 and chunks > 1)
    copying = each * chunks * splits * (tile + weights) * (OVERLAPPED if hidden else 1.0)
    adding = 2 * each * all_warps * pixels * vector if splits > 1 else 0.0
    waves = -(-each // together)
    images, rows, cols = tiling.lanes
    scattered = max(0, images * rows * -(-cols // SECTOR) - WARP // SECTOR) * SECTOR_CYCLES
    outputs = workload.n * workload.k * workload.p * workload.q
    storing = outputs * (size / cuda_cost.WRITE_RATE / 2 + scattered / WARP / cuda_cost.MULTIPROCESSORS)
    cycles = summing + copying + adding + storing + waves * (chunks + 1) * cuda_cost.CHUNK
    cycles *= (1 + SEVERAL_IMAGES * math.log2(images)) * (ALONE if together == 1 < each else 1.0)
    return (cuda_cost.LAUNCH + cycles) / cuda_cost.CYCLES_PER_US


def window(tiling: WarpTiling) -> float:
    """Elements that a thread loads for a pixel and tap: less than one where adjacent rows share them."""
    if not tiling.adjacent:
        return 1.0
    (stride, _), (dilation, _), rows = tiling.workload.stride, tiling.workload.dilation, tiling.pixels[1]
    different = {row * stride + tap * dilation for row in range(rows) for tap in range(tiling.workload.r)}
    return len(different) / (rows * tiling.workload.r)


def by_rows(tiling: WarpTiling) -> bool:
    """Whether a tile is copied row by row, a thread's column staying the same: single elements of whole rows."""
    return tiling.copy_width == 1 and not tiling.whole_planes and tiling.channel_stride % tiling.pitch == 0


def cheapest(workload: ConvWorkload, target: Target) -> dict[str, int | str]:
    """Knobs of the cheapest kernel."""
    best, knobs = math.inf, knobs_of(_smallest(workload), Block(1, VECTORS[0]))
    for tiling, block in candidates(workload):
        if (found := estimate_us(tiling, block)) >= best:
            continue
        try:
            check_block(tiling, block, target)
        except InputError:
            continue
        best, knobs = found, knobs_of(tiling, block)
    return knobs


def candidates(workload: ConvWorkload) -> Iterator[tuple[WarpTiling, Block]]:
    """(tiling, block) that are worth an estimate; not all of them fit."""
    for (lanes, pixels), splits in product(cuda_cost.shapes(workload), SPLITS):
        if splits > workload.c_per_group:
            continue
        share = -(-workload.c_per_group // splits)
        for channels in sorted({_whole(-(-share // parts)) for parts in (1, 2, 3, 4, 6, 8, 16, 32, 64)}):
            for adjacent in (False, True) if pixels[1] > 1 and workload.r > 1 else (False,):
                tiling = WarpTiling(workload, lanes, pixels, channels, splits, adjacent)
                for warps, vector in product(WARPS, VECTORS):
                    if math.prod(pixels) * vector <= DEFAULT_SUMS and warps * splits <= MOST_WARPS:
                        yield tiling, _block(tiling, warps, vector)


def _block(tiling: WarpTiling, warps: int, vector: int) -> Block:
    """Two buffers, or where single elements are copied one, and as many blocks as fit: so were first convolutions
    faster, as measured."""
    if tiling.copy_width > 1 or tiling.splits > 1 or ELEMENT_BYTES[tiling.workload.dtype] < FLOAT_BYTES:
        return Block(warps, vector)
    resident = _resident(tiling, Block(warps, vector, 1), math.prod(tiling.pixels) * vector + OTHER_REGISTERS)
    return Block(warps, vector, 1, min(resident, RESIDENT[-1])) if resident > 1 else Block(warps, vector)


def _whole(channels: int) -> int:
    """Channels of a chunk rounded up so that a loop over them can be unrolled by a power of two."""
    unit = 8 if channels > 16 else 4 if channels > 4 else 1
    return -(-channels // unit) * unit


def _smallest(workload: ConvWorkload) -> WarpTiling:
    shapes = cuda_tiles.lane_shapes(workload)
    return min((WarpTiling(workload, lanes, (1, 1, 1), 1) for lanes in shapes), key=lambda tiling: tiling.elements)


def knobs_of(tiling: WarpTiling, block: Block) -> dict[str, int | str]:
    return {
        "lanes": cuda_tiles.extents_text(tiling.lanes),
        "pixels": cuda_tiles.extents_text(tiling.pixels),
        "channels": tiling.channels,
        "warps": block.warps,
        "vector": block.vector,
        "splits": tiling.splits,
        "rows": "adjacent" if tiling.adjacent else "apart",
        "buffers": block.buffers,
        "blocks_per_sm": block.per_sm,
    }
