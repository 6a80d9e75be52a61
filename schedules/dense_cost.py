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
#: Cycles of shared memory for a weight that all lanes load; instructions a multiprocessor starts a cycle.
WEIGHT_LOAD, ISSUED = 0.53, 4
#: What a lone warp loses to latency.
STALLS = 1.6
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
    whole, rest = divmod(tiling.splits, pixels)
    if pixels % tiling.splits and (rest or vector % whole):
        raise InputError(f"{what}: {tiling.splits} warps cannot share {pixels * vector} sums evenly")


def estimate_us(tiling: WarpTiling, warps: int, vector: int) -> float:
    """Microseconds of a kernel."""
    workload, pixels, splits = tiling.workload, math.prod(tiling.pixels), tiling.splits
    taps = tiling.channels * workload.r * workload.s
    loads = pixels * tiling.conflicts + vector * WEIGHT_LOAD
    size = ELEMENT_BYTES[workload.dtype]
    converted = pixels + vector if size < FLOAT_BYTES else 0
    issued = (pixels * vector + pixels + vector / 4 + 1 + converted) / ISSUED
    all_warps, chunks = warps * splits, tiling.chunks // splits
    rate = cuda_cost.COPY_RATE[min(16, tiling.copy_width * size)]
    copying = splits * size * (tiling.elements / rate + taps * warps * vector / cuda_cost.COPY_RATE[16])
    summing = all_warps * taps * max(loads, issued)
    adding = 2 * all_warps * pixels * vector if splits > 1 else 0.0
    block = chunks * (summing + copying) + adding

    row_groups = workload.groups * -(-workload.k_per_group // (warps * vector))
    blocks = math.prod(tiling.grid) * row_groups
    registers = (pixels * vector + OTHER_REGISTERS) * all_warps * WARP
    resident = min(
        cuda_cost.SHARED_BYTES // shared_bytes(tiling, warps, vector),
        cuda_tiles.REGISTERS // registers,
        cuda_cost.THREADS // (all_warps * WARP),
    )
    each = -(-blocks // cuda_cost.MULTIPROCESSORS)
    together = min(max(1, resident), each)
    # A warp starts one instruction a cycle: fewer than four, or four without others to hide latency, are slower.
    alone = chunks * taps * issued * ISSUED * STALLS
    waves = -(-each // together)
    cycles = cuda_cost.LAUNCH + max(each * block, waves * alone) + waves * (chunks + 1) * cuda_cost.CHUNK
    outputs = workload.n * workload.k * workload.p * workload.q
    return max(cycles, cuda_cost.LAUNCH + outputs * size / cuda_cost.WRITE_RATE) / cuda_cost.CYCLES_PER_US


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
        for channels in sorted({-(-share // parts) for parts in (1, 2, 3, 4, 6, 8, 16, 32, 64)}):
            tiling = WarpTiling(workload, lanes, pixels, channels, splits)
            for warps, vector in product(WARPS, VECTORS):
                sums = math.prod(pixels) * vector
                if sums <= cuda_tiles.MOST_SUMS and warps * splits <= MOST_WARPS:
                    yield tiling, warps, vector


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
