"""What a kernel of `cuda_dense` would cost, and the knobs that cost least: for layers that were never tuned.

A column of the filter costs a warp `pixels` loads and vector / 4 broadcast loads of shared memory, and vector x pixels
multiply-adds, of which a multiprocessor starts four a cycle. On top come the copies into shared memory, what is paid
per chunk, and multiprocessors without work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

from tvm.target import Target

from tvm_sparse.compute.warp_tiling import WARP, WarpTiling
from tvm_sparse.errors import InputError
from tvm_sparse.schedules import cuda_cost, cuda_tiles
from tvm_sparse.schedules.gpu_target import shared_limit, thread_limit
from tvm_sparse.workload import ELEMENT_BYTES, ConvWorkload

#: Output channels of a warp, warps of a block side by side, warps that share the input channels of a pixel.
VECTORS, WARPS, SPLITS = (4, 8, 16), (1, 2, 4, 8, 16), (1, 2, 4, 8, 16)
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
#: The part of the loads that does not run beside the multiply-adds, or of those beside the loads.
BESIDE = 0.3
#: Elements that are stored together, and cycles of every such store of a warp that is on its own.
SECTOR, SECTOR_CYCLES = 8, 3
#: Of a sum.
FLOAT_BYTES = 4


def shared_bytes(tiling: WarpTiling, warps: int, vector: int) -> int:
    """Shared memory of a block: two buffers of input and filter for every split, and the sums of the splits."""
    workload, align = tiling.workload, cuda_tiles.BUFFER_ALIGNMENT
    weights = tiling.channels * workload.r * workload.s * warps * vector
    size = ELEMENT_BYTES[workload.dtype]
    parts = [cuda_tiles.BUFFERS * tiling.splits * count * size for count in (tiling.elements, weights)]
    if tiling.splits > 1:
        parts.append(tiling.splits * warps * vector * math.prod(tiling.pixels) * WARP * FLOAT_BYTES)
    return sum(-(-part // align) * align for part in parts)


def check_block(tiling: WarpTiling, warps: int, vector: int, target: Target) -> None:
    """Refuse what a block cannot hold.

    Raises
    ------
    InputError
        Too many threads or registers, too much shared memory, half of the channels idle, a block that reaches over two
        groups, or splits that cannot share the sums evenly.
    """
    workload, pixels, rows = tiling.workload, math.prod(tiling.pixels), warps * vector
    threads = warps * tiling.splits * WARP
    limits = {
        "threads a block": (threads, thread_limit(target)),
        "bytes of shared memory a block": (shared_bytes(tiling, warps, vector), shared_limit(target)),
        "sums a thread": (pixels * vector, cuda_tiles.MOST_SUMS),
        "registers a block": ((pixels * vector + OTHER_REGISTERS) * threads, cuda_tiles.REGISTERS),
    }
    what = f"{workload}: {tiling}, {warps} warps of {vector} channels"
    for name, (needed, allowed) in limits.items():
        if needed > allowed:
            raise InputError(f"{what}: {needed} {name}, {allowed} at most")
    if rows >= 2 * workload.k_per_group and warps > 1:
        raise InputError(f"{what}: half a block's {rows} channels would be idle")
    if workload.groups > 1 and workload.k_per_group % rows:
        raise InputError(f"{what}: a block of {rows} channels reaches over two groups")
    if not _shared_evenly(tiling, vector):
        raise InputError(f"{what}: {tiling.splits} warps cannot share {pixels * vector} sums evenly")


def _shared_evenly(tiling: WarpTiling, vector: int) -> bool:
    """Whether whole loops over a thread's sums, innermost first, and a factor of the next one make up the splits.

    s_tir can undo no other cut of the fused loops.
    """
    left = tiling.splits
    for extent in (*reversed(tiling.pixels), vector):
        if extent % left == 0:
            return True
        if left % extent:
            return False
        left //= extent
    return left == 1


def estimate_us(tiling: WarpTiling, warps: int, vector: int) -> float:
    """Microseconds of a kernel."""
    workload, pixels, splits = tiling.workload, math.prod(tiling.pixels), tiling.splits
    taps = tiling.channels * workload.r * workload.s
    all_warps, chunks = warps * splits, tiling.chunks // splits
    row_groups = workload.groups * -(-workload.k_per_group // (warps * vector))
    each = -(-math.prod(tiling.grid) * row_groups // cuda_cost.MULTIPROCESSORS)
    registers = (pixels * vector + OTHER_REGISTERS) * all_warps * WARP
    resident = min(
        cuda_cost.SHARED_BYTES // shared_bytes(tiling, warps, vector),
        cuda_tiles.REGISTERS // registers,
        cuda_cost.THREADS // (all_warps * WARP),
    )
    together = min(max(1, resident), each)

    # A scheduler starts one instruction a cycle, of another warp while one waits for its loads.
    loads = pixels * tiling.conflicts + vector * WEIGHT_LOAD
    size = ELEMENT_BYTES[workload.dtype]
    converted = pixels + vector if size < FLOAT_BYTES else 0
    started = pixels * vector + pixels + vector / 4 + 1 + converted
    share = together * all_warps / SCHEDULERS
    a_scheduler = math.ceil(share)
    issue = max(started, (started + STALL) / a_scheduler) * a_scheduler / share / SCHEDULERS
    tap = max(loads, issue) + BESIDE * min(loads, issue)
    summing = each * all_warps * chunks * taps * tap

    width = tiling.copy_width * size
    places = tiling.elements / tiling.copy_width / WARP
    instructions = places * (COPY_INSTRUCTIONS + PLACE_INSTRUCTIONS / tiling.channels) / SCHEDULERS
    tile = max(tiling.elements * size / cuda_cost.COPY_RATE[min(16, width)], instructions)
    weights = taps * warps * vector * size / cuda_cost.COPY_RATE[16]
    copying = each * chunks * splits * (tile + weights) * (OVERLAPPED if together * chunks > 1 else 1.0)
    adding = 2 * each * all_warps * pixels * vector if splits > 1 else 0.0
    waves = -(-each // together)
    images, rows, cols = tiling.lanes
    scattered = max(0, images * rows * -(-cols // SECTOR) - WARP // SECTOR) * SECTOR_CYCLES
    outputs = workload.n * workload.k * workload.p * workload.q
    storing = outputs * (size / cuda_cost.WRITE_RATE / 2 + scattered / WARP / cuda_cost.MULTIPROCESSORS)
    cycles = summing + copying + adding + storing + waves * (chunks + 1) * cuda_cost.CHUNK
    return (cuda_cost.LAUNCH + cycles) / cuda_cost.CYCLES_PER_US


def cheapest(workload: ConvWorkload, target: Target) -> dict[str, int | str]:
    """Knobs of the cheapest kernel."""
    best, knobs = math.inf, knobs_of(_smallest(workload), 1, VECTORS[0])
    for tiling, warps, vector in candidates(workload):
        if (found := estimate_us(tiling, warps, vector)) >= best:
            continue
        try:
            check_block(tiling, warps, vector, target)
        except InputError:
            continue
        best, knobs = found, knobs_of(tiling, warps, vector)
    return knobs


def candidates(workload: ConvWorkload) -> Iterator[tuple[WarpTiling, int, int]]:
    """(tiling, warps, vector) that are worth an estimate; not all of them fit."""
    for (lanes, pixels), splits in product(cuda_cost.shapes(workload), SPLITS):
        if splits > workload.c_per_group:
            continue
        share = -(-workload.c_per_group // splits)
        for channels in sorted({_whole(-(-share // parts)) for parts in (1, 2, 3, 4, 6, 8, 16, 32, 64)}):
            tiling = WarpTiling(workload, lanes, pixels, channels, splits)
            for warps, vector in product(WARPS, VECTORS):
                sums = math.prod(pixels) * vector
                if sums <= DEFAULT_SUMS and warps * splits <= MOST_WARPS:
                    yield tiling, warps, vector


def _whole(channels: int) -> int:
    """Channels of a chunk rounded up so that a loop over them can be unrolled by a power of two."""
    unit = 8 if channels > 16 else 4 if channels > 4 else 1
    return -(-channels // unit) * unit


def _smallest(workload: ConvWorkload) -> WarpTiling:
    shapes = cuda_tiles.lane_shapes(workload)
    return min((WarpTiling(workload, lanes, (1, 1, 1), 1) for lanes in shapes), key=lambda tiling: tiling.elements)


def knobs_of(tiling: WarpTiling, warps: int, vector: int) -> dict[str, int | str]:
    return {
        "lanes": cuda_tiles.extents_text(tiling.lanes),
        "pixels": cuda_tiles.extents_text(tiling.pixels),
        "channels": tiling.channels,
        "warps": warps,
        "vector": vector,
        "splits": tiling.splits,
    }
