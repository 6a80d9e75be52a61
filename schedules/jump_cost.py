"""What a block of cuda_jump takes, and which knobs should suit a layer that was never tuned.

The constants describe an H200. What a jump takes is estimated from the instructions it depends on, not measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from tvm.target import Target

from tvm_sparse.compute.jump_filter import FRAME, WORDS, Window
from tvm_sparse.compute.packed_filter import ROW_START, segment_length
from tvm_sparse.compute.warp_tiling import WARP, WarpTiling
from tvm_sparse.errors import InputError
from tvm_sparse.schedules import cuda_cost
from tvm_sparse.schedules import cuda_tiles as tiles
from tvm_sparse.schedules.base import Knobs
from tvm_sparse.schedules.gpu_target import shared_limit, thread_limit
from tvm_sparse.workload import ConvWorkload

#: Output channels of a warp.
ROWS = (4, 8, 12, 16, 24, 32)
#: Jumps that pieces of code share; 0 stands for one each.
JUMPS = (0, 8, 1)
#: Sums of a thread, which are operands of its code; pieces of code, each with a table of jumps to all in 64 KiB.
MOST_SUMS, MOST_PIECES = 120, 120
#: Registers of a thread, at most.
MOST_REGISTERS = 255
#: Bytes of a word: of the input, of sums, half an instruction, the start of a program.
WORD = 4
#: Schedulers of a multiprocessor, clocks a microsecond.
SCHEDULERS, CLOCKS_A_US = 4, 1900
#: Bytes of tables of jumps that the nearest cache of constants holds; and of a target.
TABLE_CACHE, TARGET = 2048, 4
#: Clocks from a jump to the next one of a warp, with a jump each or a shared one, whose tables fit the cache; and more
#: where they do not. Instructions of an instruction of a program beside its own.
JUMP_CLOCKS, SHARED_CLOCKS, MISS_CLOCKS, OVERHEAD = 55, 83, 65, 6
#: Chunks that a worker's share of the channels is tried to be cut into.
CUTS = (1, 2, 4, 8, 16, 32)
#: Bytes a clock from L2 to shared memory; instructions of a copy; clocks to start and end a kernel, and a chunk.
COPY_RATE, COPY_COST, LAUNCH_CLOCKS, CHUNK_CLOCKS = 22, 6, 4000, 700


def smallest_bytes(workload: ConvWorkload) -> int:
    """Shared memory of the smallest block of a filter without zeros."""
    knobs = _smallest(workload)
    window = Window.of(tiling_of(workload, knobs))
    instructions = workload.r * workload.s * min(ROWS) + window.a_channel + FRAME
    return shared_bytes(tiling_of(workload, knobs), knobs, segment_length(instructions))


def row_counts(workload: ConvWorkload) -> tuple[int, ...]:
    """Output channels of a warp that leave less than half of them idle."""
    whole = [n for n in ROWS if workload.groups == 1 or workload.k_per_group % n == 0]
    return tuple(n for n in whole if n == min(ROWS) or n < 2 * workload.k_per_group)


def warp_counts(workload: ConvWorkload) -> tuple[int, ...]:
    """Warps of a block, of the fewest output channels, that leave less than half of them idle."""
    whole = [
        n for n in tiles.warp_counts(workload) if workload.groups == 1 or workload.k_per_group % (min(ROWS) * n) == 0
    ]
    return tuple(n for n in whole if n == 1 or min(ROWS) * n < 2 * workload.k_per_group)


def jumps(pieces: int) -> int:
    """Of JUMPS the one with which the tables of so many pieces of code fit the cache, as far as one does."""
    return next((each for each in JUMPS if _table_bytes(pieces, each) <= TABLE_CACHE), JUMPS[-1])


def _table_bytes(pieces: int, shared: int) -> int:
    targets = pieces + 2
    return (shared or targets) * targets * TARGET


def _jump_clocks(pieces: int, shared: int) -> int:
    misses = _table_bytes(pieces, shared) > TABLE_CACHE
    return (SHARED_CLOCKS if shared else JUMP_CLOCKS) + (MISS_CLOCKS if misses else 0)


def splits(workload: ConvWorkload) -> tuple[int, ...]:
    """The warps that may share the channels of a pixel."""
    return tuple(n for n in (1, 2, 4, 8, 16) if n <= workload.c_per_group)


def tiling_of(workload: ConvWorkload, knobs: Knobs) -> WarpTiling:
    lanes, pixels = tiles.extents(knobs["lanes"]), tiles.extents(knobs["pixels"])
    return WarpTiling(workload, lanes, pixels, int(knobs["channels"]), int(knobs["splits"]), adjacent=True)


def shared_bytes(tiling: WarpTiling, knobs: Knobs, instructions: int) -> int:
    """Shared memory of a block: two chunks of input and programs for each of its workers, and their sums."""
    words = (tiling.elements, instructions * WORDS, int(knobs["warps"]))
    staged = sum(_aligned(2 * tiling.splits * each * WORD) for each in words)
    return staged + (_sums(knobs) * WARP * WORD * int(knobs["warps"]) * tiling.splits if tiling.splits > 1 else 0)


def check_block(tiling: WarpTiling, knobs: Knobs, instructions: int, target: Target) -> None:
    """Refuse what a block cannot hold.

    Parameters
    ----------
    instructions : of a segment

    Raises
    ------
    InputError
        Too many threads, registers or pieces of code, too much shared memory, sums that the workers cannot share
        evenly, or blocks half of whose output channels would be idle or that reach over two groups.
    """
    workload, window = tiling.workload, Window.of(tiling)
    rows, warps = int(knobs["rows"]), int(knobs["warps"])
    threads = warps * tiling.splits * WARP
    limits = {
        "threads a block": (threads, thread_limit(target)),
        "bytes of shared memory a block": (shared_bytes(tiling, knobs, instructions), shared_limit(target)),
        "sums a thread": (_sums(knobs), MOST_SUMS),
        "pieces of code": (len(window.places) * rows, MOST_PIECES),
        "registers a thread": (_registers(knobs, window), MOST_REGISTERS),
        "registers a block": (_registers(knobs, window) * threads, tiles.REGISTERS),
        "instructions of a chunk": (instructions, ROW_START // 2),
    }
    for what, (needed, allowed) in limits.items():
        if needed > allowed:
            raise InputError(f"{workload}: knobs {dict(knobs)}: {needed} {what}, {allowed} at most")
    if tiling.splits > 1 and not tiles.shared_evenly((*tiles.extents(knobs["pixels"]), rows), tiling.splits):
        raise InputError(f"{workload}: knobs {dict(knobs)}: {tiling.splits} warps cannot share {_sums(knobs)} sums")
    if rows * warps >= 2 * workload.k_per_group and rows * warps > min(ROWS):
        raise InputError(f"{workload}: knobs {dict(knobs)}: half a block's {rows * warps} channels would be idle")
    if workload.groups > 1 and workload.k_per_group % (rows * warps):
        raise InputError(f"{workload}: knobs {dict(knobs)}: a block of {rows * warps} channels reaches over two groups")


def _sums(knobs: Knobs) -> int:
    """Sums of a thread."""
    return math.prod(tiles.extents(knobs["pixels"])) * int(knobs["rows"])


def _registers(knobs: Knobs, window: Window) -> int:
    return _sums(knobs) + len(window.loads) + tiles.OTHER_REGISTERS


def _aligned(count: int) -> int:
    return -(-count // tiles.BUFFER_ALIGNMENT) * tiles.BUFFER_ALIGNMENT


@dataclass(frozen=True)
class _Programs:
    """What the evenly spread nonzeros of one warp make, over all of its chunks."""

    nonzeros: float
    windows: float

    @classmethod
    def of(cls, tiling: WarpTiling, window: Window, rows: int, density: float) -> _Programs:
        workload = tiling.workload
        channels = workload.c_per_group / tiling.splits
        used = 1 - (1 - min(density, 1)) ** (len(window.places) * rows)
        return cls(density * channels * workload.r * workload.s * rows, channels * window.a_channel * used)

    @property
    def instructions(self) -> float:
        return self.nonzeros + self.windows


def segment_entries(tiling: WarpTiling, knobs: Knobs, density: float) -> int:
    """Instructions of a segment of evenly spread nonzeros, with what chance adds."""
    window, warps = Window.of(tiling), int(knobs["warps"])
    programs = _Programs.of(tiling, window, int(knobs["rows"]), density)
    steps = tiling.chunks // tiling.splits
    mean = warps * (programs.instructions / steps + FRAME)
    return segment_length(math.ceil(mean + 3 * math.sqrt(mean)))


def estimate_us(tiling: WarpTiling, knobs: Knobs, density: float) -> float:
    """Microseconds by rule: the busiest of shared memory, issue slots and jumps, plus copies and sums."""
    workload, window = tiling.workload, Window.of(tiling)
    rows, warps, pixels = int(knobs["rows"]), int(knobs["warps"]), tiling.pixel_shape[0]
    programs, threads = _Programs.of(tiling, window, rows, density), warps * tiling.splits * WARP
    entries = segment_entries(tiling, knobs, density)
    blocks = math.prod(tiling.grid) * workload.groups * -(-workload.k_per_group // (rows * warps))
    resident = min(
        tiles.REGISTERS // (_registers(knobs, window) * threads),
        cuda_cost.SHARED_BYTES // (shared_bytes(tiling, knobs, entries) + 1024),
        cuda_cost.THREADS // threads,
    )
    if not resident:
        return math.inf
    # Fewer blocks than places: those that are there share a multiprocessor with fewer others.
    together = min(resident, -(-blocks // cuda_cost.MULTIPROCESSORS))
    here = together * warps * tiling.splits

    shared = programs.nonzeros + programs.windows * (1 + len(window.loads) * tiling.conflicts)
    issued = programs.nonzeros * (pixels + OVERHEAD) + programs.windows * (len(window.loads) + OVERHEAD)
    waits = programs.instructions * _jump_clocks(len(window.places) * rows, int(knobs["jumps"]))
    steps = tiling.chunks // tiling.splits
    copied = steps * tiling.splits * (tiling.elements + entries * WORDS)
    copies = steps * tiling.splits * (tiling.elements / tiling.copy_width + entries / 2) * COPY_COST / WARP
    work = max(here * shared, here * issued / SCHEDULERS + together * copies / SCHEDULERS, waits)
    clocks = max(work, together * copied * WORD / COPY_RATE) + steps * CHUNK_CLOCKS / together
    if tiling.splits > 1:
        clocks += 2 * here * _sums(knobs)
    waves = -(-blocks // (cuda_cost.MULTIPROCESSORS * together))
    return (LAUNCH_CLOCKS + waves * clocks) / CLOCKS_A_US


def estimate_fitting(workload: ConvWorkload, density: float, knobs: Knobs, target: Target) -> float:
    """`estimate_us` of knobs, infinite where a block cannot hold them."""
    try:
        tiling = tiling_of(workload, knobs)
        check_block(tiling, knobs, segment_entries(tiling, knobs, density), target)
    except InputError:
        return math.inf
    return estimate_us(tiling, knobs, density)


def cheapest(workload: ConvWorkload, density: float, target: Target) -> dict[str, int | str]:
    """The knobs that should take the least time."""
    return dict(_cheapest(workload, density, target))


@lru_cache(maxsize=1024)
def _cheapest(workload: ConvWorkload, density: float, target: Target) -> dict[str, int | str]:
    best, chosen = math.inf, _smallest(workload)
    for tiling, knobs in _candidates(workload):
        time_us = estimate_us(tiling, knobs, density)
        if time_us >= best:
            continue
        try:
            check_block(tiling, knobs, segment_entries(tiling, knobs, density), target)
        except InputError:
            continue
        best, chosen = time_us, knobs
    return chosen


def _candidates(workload: ConvWorkload) -> Iterator[tuple[WarpTiling, dict[str, int | str]]]:
    for lanes, pixels in cuda_cost.shapes(workload):
        blocks = [
            (rows, warps)
            for rows in ROWS
            for warps in (1, 2, 4, 8, 16)
            if rows * math.prod(pixels) <= MOST_SUMS and (rows * warps < 2 * workload.k_per_group or rows == min(ROWS))
        ]
        for split in splits(workload):
            share = -(-workload.c_per_group // split)
            for channels in sorted({-(-share // parts) for parts in CUTS}):
                tiling = WarpTiling(workload, lanes, pixels, channels, split, adjacent=True)
                knobs: dict[str, int | str] = {"lanes": tiles.extents_text(lanes), "channels": channels}
                knobs |= {"pixels": tiles.extents_text(pixels), "splits": split}
                taps = len(Window.of(tiling).places)
                for rows, warps in blocks:
                    yield tiling, {**knobs, "rows": rows, "warps": warps, "jumps": jumps(taps * rows)}


def _smallest(workload: ConvWorkload) -> dict[str, int | str]:
    """Knobs of the block that takes the least of everything."""
    lanes = min(tiles.lane_shapes(workload), key=lambda shape: WarpTiling(workload, shape, (1, 1, 1), 1).elements)
    return {
        "lanes": tiles.extents_text(lanes),
        "pixels": "1x1x1",
        "channels": 1,
        "rows": min(ROWS),
        "warps": 1,
        "splits": 1,
        "jumps": 0,
    }
