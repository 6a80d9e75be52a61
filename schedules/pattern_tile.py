"""How large tiles, chunks and row groups of `cuda_pattern` should be for a layer that was never tuned."""

from __future__ import annotations

import math

from tvm_sparse.compute.pattern_conv import PatternTiling, reads_own_pixel
from tvm_sparse.compute.warp_tiling import WARP
from tvm_sparse.workload import ELEMENT_BYTES, ConvWorkload

#: Multiprocessors of a large GPU, and warps that one starts at a time: a block of a multiple of them loses none.
PROCESSORS, WARPS_AT_A_TIME = 132, 4
IMAGES = (1, 2, 4, 8)
#: Elements of the smallest tile.
FEWEST_STAGED = 4
#: Code that a multiprocessor's instruction cache holds.
CACHED_CODE_BYTES = 100 * 1024
#: Sums of a thread, and how many leave registers for more than one block a multiprocessor.
MOST_SUMS, FEW_SUMS = 128, 64
#: Instructions of a copy and of an output; what a multiprocessor gets from L2 of data, and of code it runs once.
COPY, EPILOGUE = 3.5, 4
INSTRUCTION_BYTES, CODE_BYTES_A_CLOCK, L2_BYTES_A_CLOCK = 16, 2, 22


def staged_elements(tiling: PatternTiling, stages: int) -> int:
    """Elements of a block's tiles; a few more than one, since TVM 0.27 forgets to place a buffer of 4 bytes or less."""
    return max(FEWEST_STAGED, tiling.pair * tiling.elements * stages) if stages else 0


def shared_bytes(tiling: PatternTiling, stages: int) -> int:
    """Shared memory of a block."""
    return staged_elements(tiling, stages) * ELEMENT_BYTES[tiling.workload.dtype]


def smallest_bytes(workload: ConvWorkload) -> int:
    """Shared memory of the smallest tile."""
    return shared_bytes(PatternTiling(workload, 1, 1, 1, 1, 1, not reads_own_pixel(workload)), 1)


def tile_widths(size: int) -> tuple[int, ...]:
    """Rows or columns of a tile worth trying for an output of this size: its even parts, and powers of two."""
    parts = {-(-size // parts) for parts in range(1, 15)}
    return tuple(sorted(parts | {width for width in (1, 2, 4, 8, 16, 32) if width <= size}))


def row_groups(workload: ConvWorkload) -> tuple[int, ...]:
    """Output channels of a group worth trying, fewest first.

    Where the number of groups divides that of the multiprocessors and the groups of a tile stand next to each other,
    each multiprocessor fetches the code of one group only.
    """
    counts = [count for count in range(1, PROCESSORS + 1) if PROCESSORS % count == 0]
    sizes = {-(-workload.k_per_group // count) for count in counts} | {16, 32, 64}
    if workload.groups > 1:
        sizes = {size for size in sizes if workload.k_per_group % size == 0}
    return tuple(sorted(size for size in sizes if size <= min(MOST_SUMS, workload.k_per_group)))


def best_rows(workload: ConvWorkload, density: float, tile: tuple[int, int, int], staged: bool) -> int:
    """The row group that should be fastest with an instruction cache that is cold, as between the layers of a network.

    More output channels a group load and copy less for each nonzero, and fetch more code on each multiprocessor.
    """
    tiling = PatternTiling(workload, *tile, 1, 1, staged)
    tiles, warps = math.prod(tiling.grid), -(-tiling.pixels // WARP)
    row = workload.c_per_group * workload.r * workload.s

    def clocks(rows: int) -> float:
        groups = -(-workload.k // rows)
        blocks = -(-tiles * groups // PROCESSORS)
        nonzeros, loads = density * row * rows, (1 - (1 - density) ** rows) * row
        copied = tiling.input_elements * workload.c_per_group if staged else loads * tiling.pixels
        instructions = nonzeros + loads + EPILOGUE * rows + (COPY * copied / tiling.pixels if staged else 0)
        traffic = copied * ELEMENT_BYTES[workload.dtype] / L2_BYTES_A_CLOCK
        run = blocks * max(warps * instructions / WARPS_AT_A_TIME, warps * loads, traffic)
        return run + INSTRUCTION_BYTES * (nonzeros + loads) / CODE_BYTES_A_CLOCK

    return min((rows for rows in row_groups(workload) if rows <= FEW_SUMS), key=clocks)


def most_rows(workload: ConvWorkload, code_bytes: float) -> int:
    """The row group that is fastest where there are blocks enough for every multiprocessor.

    As many output channels as registers allow while the code fits the instruction cache, half as many beyond.
    """
    most = FEW_SUMS if code_bytes <= CACHED_CODE_BYTES else FEW_SUMS // 2
    return max(size for size in row_groups(workload) if size <= most)


def resident_blocks(rows: int, staged: bool, paired: bool) -> int:
    """Blocks a multiprocessor that the compiler should leave registers for."""
    if staged:
        return 2 if paired else 3
    return 2 if rows > FEW_SUMS // 2 and not paired else 4


def fill(workload: ConvWorkload, rows: int, most_threads: int) -> int:
    """Threads of a block, at most so many, so that there is a block for every multiprocessor."""
    blocks = workload.n * workload.p * workload.q * -(-workload.k // rows) // PROCESSORS
    return max(WARP, min(most_threads, blocks // WARP * WARP))


def best_tile(workload: ConvWorkload, threads: int, limit_bytes: int) -> tuple[int, int, int]:
    """(images, rows, cols) of a staged tile: whole rows, as many as there are threads, of one image if that has enough.

    `limit_bytes` is what the tile of one channel may take; a single pixel is the answer if none fits.
    """
    cols = min(workload.q, threads)
    rows = min(workload.p, threads // cols)
    rows = -(-workload.p // -(-workload.p // rows))
    images = max(images for images in IMAGES if images == 1 or images <= min(workload.n, threads // (rows * cols)))
    while (
        max(images, rows, cols) > 1 and shared_bytes(PatternTiling(workload, images, rows, cols, 1, 1), 1) > limit_bytes
    ):
        if images > 1:
            images //= 2
        elif rows > 1:
            rows = -(-rows // 2)
        else:
            cols = -(-cols // 2)
    return images, rows, cols


def channels_within(workload: ConvWorkload, tile: tuple[int, int, int], stages: int, budget_bytes: int) -> int:
    """Channels of a chunk whose tile keeps to a budget, at least one; equal chunks unless that takes twice as many."""
    fitting = []
    for channels in range(1, workload.c_per_group + 1):
        if shared_bytes(PatternTiling(workload, *tile, channels, 1), stages) <= budget_bytes:
            fitting.append(channels)
    most = max(fitting, default=1)
    even = [channels for channels in fitting if workload.c_per_group % channels == 0]
    if even and 2 * max(even) > most:
        return max(even)
    # The layout of a tile is not smaller for fewer channels everywhere.
    balanced = -(-workload.c_per_group // -(-workload.c_per_group // most))
    return balanced if balanced in fitting else max(even, default=most)
