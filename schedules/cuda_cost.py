"""What a CUDA kernel of these templates would cost, and the knobs that cost least: for layers that were never tuned.

The bound of all of them is the bandwidth of shared memory: a nonzero costs a warp one load of its value and offset and
one load for each of the thread's pixels. On top come the copies into shared memory, what is paid per row and per chunk,
too few warps to hide a load's latency, and multiprocessors without work. The constants are
estimates, held against times on an H200 (docs/gpu-performance.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, Protocol

from tvm.target import Target

from tvm_sparse.compute.flat_tiling import FlatTiling, flat_pixels
from tvm_sparse.compute.pair_tiling import PAIR, PairTiling, words_of
from tvm_sparse.compute.warp_tiling import WARP, WarpTiling
from tvm_sparse.errors import InputError
from tvm_sparse.schedules import cuda_tiles as tiles
from tvm_sparse.schedules.base import Knobs
from tvm_sparse.schedules.plane_copies import WIDTH, plane_copies
from tvm_sparse.workload import ELEMENT_BYTES, ConvWorkload

#: A large GPU of today.
MULTIPROCESSORS, SHARED_BYTES, THREADS = 132, 227 * 1024, 2048
CYCLES_PER_US = 1980
#: Bytes that a multiprocessor copies in a cycle, by the bytes of one copy.
COPY_RATE = {16: 48.0, 8: 24.0, 4: 9.0, 2: 4.0}
#: Cycles: to start and end a kernel, a second kernel, of a chunk, of a row in a chunk.
LAUNCH, SECOND_LAUNCH, CHUNK, ROW = 3400, 1800, 350, 5
#: Warps that keep shared memory busy.
ENOUGH_WARPS = 18
#: Bytes all of the GPU writes in a cycle.
WRITE_RATE = 1900
#: Cycles of a warp's store for every stretch of memory that it goes to.
WRITTEN_RUN = 6.5
#: Nonzeros of a row and chunk, of those that may be summed in float16, that leave room for rows with more.
HALF_SUMMED = 60
#: Layouts of a thread's pixels that are worth a closer look, for every number of pixels.
SHAPES = 4


@dataclass(frozen=True)
class Estimate:
    """Microseconds of a kernel, and the entries of a segment it stages."""

    time_us: float
    entries: int


def estimate(tiling: WarpTiling | PairTiling, knobs: Knobs, density: float) -> Estimate:
    """The time of cuda_pixel, or of cuda_pixel_nonzero if the tiling has splits, for evenly spread nonzeros."""
    workload, vector = tiling.workload, tiles.vector_of(knobs)
    pixels, pad_to = math.prod(tiling.pixels), int(knobs["pad_to"])
    rows = int(knobs["warps"]) * int(knobs["blocks_per_warp"])
    over_warps = knobs.get("split_over") == "warps"
    workers = tiling.splits if over_warps else 1
    warps = int(knobs["warps"]) * workers
    columns = (1 - (1 - density) ** vector) * tiling.channels * workload.r * workload.s
    steps = columns + (pad_to - 1) / 2 if columns else 0.0
    # The longest segment is some deviations longer than the mean one.
    entries = round(rows * steps + 3 * math.sqrt(max(1.0, rows * columns * (1 - min(1.0, density))))) + pad_to

    size = ELEMENT_BYTES[workload.dtype]
    load = 1 + (vector - 1) / 4 + pixels * tiling.conflicts
    chunks = tiling.chunks // tiling.splits
    summing = workers * rows * (steps * load + ROW)
    together = tiling.copy_width
    if isinstance(tiling, PairTiling) and plane_copies(tiling, warps * WARP):
        together = WIDTH
    rate = COPY_RATE[min(16, max(2, together * size))]
    copying = workers * (tiling.elements * size / rate + entries * (4 + size * vector) / COPY_RATE[16])
    block = chunks * (summing + copying)

    groups = workload.groups
    row_groups = groups * -(-workload.k_per_group // (rows * vector))
    blocks = math.prod(tiling.grid) * row_groups * (1 if over_warps else tiling.splits)
    shared = tiles.staged_bytes(tiling, knobs, entries, workers)
    sums = pixels * (PAIR if isinstance(tiling, PairTiling) else 1)
    registers = (sums * int(knobs["blocks_per_warp"]) * vector + tiles.OTHER_REGISTERS) * warps * WARP
    resident = max(1, min(SHARED_BYTES // shared, tiles.REGISTERS // registers, THREADS // (warps * WARP)))
    each = -(-blocks // MULTIPROCESSORS)
    at_once = min(resident, each)
    idle = max(1.0, (ENOUGH_WARPS / (at_once * warps)) ** 0.7)
    cycles = LAUNCH + each * block * idle + -(-each // at_once) * (chunks + 1) * CHUNK
    outputs = workload.n * workload.k * workload.p * workload.q
    words = PAIR if isinstance(tiling, PairTiling) and tiling.axis == "columns" else 1
    cycles += outputs / (words * WARP * MULTIPROCESSORS) * _runs(tiling) * WRITTEN_RUN
    cycles = max(cycles, LAUNCH + outputs * size / WRITE_RATE)
    if tiling.splits > 1 and not over_warps:
        cycles += SECOND_LAUNCH + 8 * tiling.splits * outputs / WRITE_RATE / 2
    return Estimate(cycles / CYCLES_PER_US, entries)


def _runs(tiling: WarpTiling | PairTiling) -> int:
    """Stretches of memory that the lanes of a warp store to."""
    images, rows, _ = tiling.lanes
    whole_rows = tiling.cols >= tiling.workload.q
    return min(images, tiling.workload.n) * (1 if whole_rows else min(rows, tiling.workload.p))


class TiledTemplate(Protocol):
    """What an estimate needs of cuda_pixel or cuda_pixel_nonzero."""

    def tiling(self, workload: ConvWorkload, knobs: Knobs) -> Any: ...
    def shared_bytes(self, tiling: Any, knobs: Knobs, entries: int) -> int: ...


def estimate_fitting(
    template: TiledTemplate, workload: ConvWorkload, density: float, knobs: Knobs, target: Target
) -> float:
    """Microseconds as by `estimate`; infinite where knobs do not go together or a block does not fit."""
    try:
        tiling = template.tiling(workload, knobs)
        found = estimate(tiling, knobs, density)
        warps = int(knobs["warps"]) * (tiling.splits if knobs.get("split_over") == "warps" else 1)
        tiles.check_block(workload, target, knobs, warps, template.shared_bytes(tiling, knobs, found.entries))
    except InputError:
        return math.inf
    return found.time_us


def cheapest(
    workload: ConvWorkload, density: float, target: Target, splits: tuple[int, ...] = ()
) -> tuple[float, dict[str, int | str]]:
    """Microseconds and knobs of the cheapest kernel: of cuda_pixel, or of cuda_pixel_nonzero if `splits` are given."""
    time_us, knobs = _cheapest(workload, density, target, splits)
    return time_us, dict(knobs)


@lru_cache(maxsize=1024)
def _cheapest(
    workload: ConvWorkload, density: float, target: Target, splits: tuple[int, ...]
) -> tuple[float, dict[str, int | str]]:
    best: tuple[float, dict[str, int | str]] | None = None
    for tiling, knobs in _candidates(workload, density, splits):
        found = estimate(tiling, knobs, density)
        if best is not None and found.time_us >= best[0]:
            continue
        try:
            shared = tiles.staged_bytes(tiling, knobs, found.entries)
            tiles.check_block(workload, target, knobs, int(knobs["warps"]), shared)
        except InputError:
            continue
        best = found.time_us, knobs
    return best or (math.inf, smallest(workload, splits))


def smallest(workload: ConvWorkload, splits: tuple[int, ...] = ()) -> dict[str, int | str]:
    """Knobs of the block that takes the least of everything."""
    lanes = min(tiles.lane_shapes(workload), key=lambda shape: WarpTiling(workload, shape, (1, 1, 1), 1).elements)
    knobs: dict[str, int | str] = {"lanes": tiles.extents_text(lanes), "pixels": "1x1x1", "channels": 1, "warps": 1}
    knobs |= {"blocks_per_warp": 1, "pad_to": 1, "format": "csr"}
    if splits:
        return {**knobs, "splits": splits[0], "split_over": "blocks"}
    return {**knobs, **({"pairs": tiles.NO_PAIRS} if tiles.pair_options(workload) else {})}


def smaller(workload: ConvWorkload, knobs: Knobs) -> dict[str, int | str] | None:
    """Knobs of a block that takes less shared memory, for a filter whose nonzeros are spread worse than most."""
    for name in ("channels", "blocks_per_warp", "warps"):
        if int(knobs[name]) > 1:
            return {**knobs, name: int(knobs[name]) // 2}
        if name == "channels" and tiles.chunk_dtype(knobs) == "float16":
            return {**knobs, "pairs": "float32"}
    least = smallest(workload, (int(knobs["splits"]),) if "splits" in knobs else ())
    return None if least == knobs else least


def _candidates(
    workload: ConvWorkload, density: float, splits: tuple[int, ...]
) -> Iterator[tuple[WarpTiling | PairTiling, dict[str, int | str]]]:
    text = tiles.format_for(workload, density)
    row_blocks = -(-workload.k_per_group // tiles.vector_of({"format": text}))
    # A block may have idle rows, but not half of them, and none where it would reach over two groups.
    blocks = [(warps, per_warp) for warps in tiles.warp_counts(workload) for per_warp in (1, 2, 4, 8)]
    if workload.groups > 1:
        blocks = [(w, r) for w, r in blocks if row_blocks % (w * r) == 0]
    else:
        blocks = [(w, r) for w, r in blocks if w * r < 2 * row_blocks]
    most_warps = max(warps for warps, _ in blocks)
    blocks = [(w, r) for w, r in blocks if w >= most_warps // 4]
    pairs = {} if splits else tiles.default_pairs(workload, density)
    paired = pairs.get("pairs", tiles.NO_PAIRS) != tiles.NO_PAIRS
    layouts: list[tuple[tiles.Extents | str, tiles.Extents]] = list(shapes(words_of(workload) if paired else workload))
    if not paired:
        layouts += [(tiles.FLAT, pixels) for pixels in flat_pixels(workload, tiles.MOST_PIXELS)]
    for (lanes, pixels), split in product(layouts, splits or (1,)):
        share = -(-workload.c_per_group // split)
        for channels in sorted({-(-share // parts) for parts in (1, 2, 3, 4, 6, 8, 16, 32)}):
            if isinstance(lanes, str):
                tiling: WarpTiling | PairTiling = FlatTiling(workload, (1, 1, WARP), pixels, channels, split)
            else:
                tiling = (PairTiling if paired else WarpTiling)(workload, lanes, pixels, channels, split)
            expected = density * channels * workload.r * workload.s
            if pairs.get("pairs") == "float16" and channels > 1 and expected > HALF_SUMMED:
                continue
            knobs: dict[str, int | str] = {
                "lanes": lanes if isinstance(lanes, str) else tiles.extents_text(lanes),
                "pixels": tiles.extents_text(pixels),
                "channels": channels,
                "pad_to": 4 if expected >= 12 else 2 if expected >= 4 else 1,
                "format": text,
                **({"splits": split, "split_over": "blocks"} if splits else {}),
                **pairs,
            }
            for warps, per_warp in blocks:
                yield tiling, {**knobs, "warps": warps, "blocks_per_warp": per_warp}


def shapes(workload: ConvWorkload) -> list[tuple[tiles.Extents, tiles.Extents]]:
    """For every number of pixels a thread, the few ways to lay them out that waste least."""
    by_pixels: dict[int, list[tuple[float, tiles.Extents, tiles.Extents]]] = {}
    sizes = (workload.n, workload.p, workload.q)
    for lanes in tiles.lane_shapes(workload):
        for pixels in tiles.pixel_shapes(workload):
            extents = [own * shared for own, shared in zip(pixels, lanes, strict=True)]
            # Whole tiles, and the halo that their input has on top.
            waste = math.prod(-(-size // extent) * extent / size for size, extent in zip(sizes, extents, strict=True))
            halo = math.prod(
                1 + (taps - 1) * dilation / (stride * min(extent, size))
                for taps, dilation, stride, extent, size in zip(
                    (workload.r, workload.s), workload.dilation, workload.stride, extents[1:], sizes[1:], strict=True
                )
            )
            by_pixels.setdefault(math.prod(pixels), []).append((waste * halo**0.25, lanes, pixels))
    return [(lanes, pixels) for found in by_pixels.values() for _, lanes, pixels in sorted(found)[:SHAPES]]
