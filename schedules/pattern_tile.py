"""How large tiles, chunks and row groups of `cuda_pattern` should be for a layer that was never tuned."""

from __future__ import annotations

from collections.abc import Iterator

from tvm_sparse.compute.pattern_conv import DTYPE_BYTES, PatternTiling, reads_own_pixel
from tvm_sparse.schedules.base import closest_divisor
from tvm_sparse.workload import ConvWorkload

WARP = 32
#: Multiprocessors of a large GPU, and warps that one starts at a time: a block of a multiple of them loses none.
PROCESSORS, WARPS_AT_A_TIME = 132, 4
IMAGES = (1, 2, 4, 8)
#: What copying an input element costs, and a block, in multiply-adds of a thread.
COPY_COST, BLOCK_COST = 0.1, 16


def shared_bytes(tiling: PatternTiling, stages: int) -> int:
    """Shared memory of a block."""
    return tiling.elements * stages * DTYPE_BYTES[tiling.workload.dtype]


def smallest_bytes(workload: ConvWorkload) -> int:
    """Shared memory of the smallest tile."""
    return shared_bytes(PatternTiling(workload, 1, 1, 1, 1, 1, not reads_own_pixel(workload)), 1)


def tile_widths(size: int) -> tuple[int, ...]:
    """Rows or columns of a tile worth trying for an output of this size: its even parts, and powers of two."""
    parts = {-(-size // parts) for parts in range(1, 15)}
    return tuple(sorted(parts | {width for width in (1, 2, 4, 8, 16, 32) if width <= size}))


def rows_per_group(workload: ConvWorkload, most: int) -> int:
    """At most `most` output channels that do not reach over two groups."""
    return min(most, workload.k) if workload.groups == 1 else closest_divisor(workload.k_per_group, most)


def rows_that_fill(workload: ConvWorkload) -> int:
    """Output channels of a group for which every multiprocessor has a warp for each of its schedulers."""
    pixels = workload.n * workload.p * workload.q
    return workload.k * pixels // (PROCESSORS * WARPS_AT_A_TIME * WARP)


def fill(workload: ConvWorkload, rows: int, most_threads: int) -> int:
    """Threads of a block, at most so many, so that there is a block for every multiprocessor."""
    blocks = workload.n * workload.p * workload.q * -(-workload.k // rows) // PROCESSORS
    return max(WARP, min(most_threads, blocks // WARP * WARP))


def best_tile(workload: ConvWorkload, threads: int, limit_bytes: int) -> tuple[int, int, int]:
    """(images, rows, cols) of a staged tile: few idle lanes, a small halo, at most so many threads.

    `limit_bytes` is what the tile of one channel may take; a single pixel is the answer if none fits.
    """
    best, least = (1, 1, 1), float("inf")
    for images, rows, cols in _tiles(workload, threads):
        tiling = PatternTiling(workload, images, rows, cols, 1, 1)
        if shared_bytes(tiling, 1) > limit_bytes:
            continue
        warps = -(-tiling.pixels // WARP)
        if warps > WARPS_AT_A_TIME:
            warps = -(-warps // WARPS_AT_A_TIME) * WARPS_AT_A_TIME
        tiles = tiling.grid[0] * tiling.grid[1] * tiling.grid[2]
        cost = tiles * (warps * WARP + COPY_COST * tiling.input_elements + BLOCK_COST)
        if cost < least:
            best, least = (images, rows, cols), cost
    return best


def channels_within(workload: ConvWorkload, tile: tuple[int, int, int], stages: int, budget_bytes: int) -> int:
    """Channels of a chunk whose tile keeps to a budget, at least one; equal chunks unless that takes twice as many."""
    fitting = []
    for channels in range(1, workload.c_per_group + 1):
        if shared_bytes(PatternTiling(workload, *tile, channels, 1), stages) <= budget_bytes:
            fitting.append(channels)
    most = max(fitting, default=1)
    even = [channels for channels in fitting if workload.c_per_group % channels == 0]
    return max(even) if even and 2 * max(even) > most else -(-workload.c_per_group // -(-workload.c_per_group // most))


def _tiles(workload: ConvWorkload, threads: int) -> Iterator[tuple[int, int, int]]:
    for images in (images for images in IMAGES if images <= workload.n):
        for rows in tile_widths(workload.p):
            for cols in tile_widths(workload.q):
                if images * rows * cols <= threads:
                    yield images, rows, cols
