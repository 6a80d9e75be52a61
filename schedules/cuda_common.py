"""What the CUDA templates share: how pixels lie on the lanes of a warp, and the loop that sums the nonzeros.

A warp sits on 32 neighbouring pixels of one output channel, so that its loads of the input tile hit different memory
banks; a thread holds `pixels` such pixels, 32 apart, times some row blocks in registers. Values, offsets, starts and
counts are the same for a whole warp and are read from global memory.
"""

from __future__ import annotations

from typing import Any

from tvm import s_tir, tirx
from tvm.target import Target

from tvm_sparse.compute.geometry import Tiling
from tvm_sparse.errors import InputError
from tvm_sparse.schedules.base import Knobs
from tvm_sparse.schedules.gpu_target import shared_limit, thread_limit
from tvm_sparse.schedules.primitives import mark_row_length
from tvm_sparse.workload import ConvWorkload

WARP = 32
BANKS = 32
BANK_BYTES = 4
DTYPE_BYTES = {"float32": 4, "float16": 2}
#: Sums a thread may keep in registers, and products the loop over nonzeros is unrolled to: more compile for minutes.
MOST_SUMS = 128
MOST_UNROLLED = 256
#: Output channels of a row block that may share columns.
VECTORS = (2, 4, 8)
#: Above this density row blocks of several channels that share every column beat rows of their own nonzeros.
DENSE_FROM = 0.6
#: Rows of a tile may be widened by this factor where that keeps its pixels in different banks.
WIDEST_PITCH = 1.25


def why_not(workload: ConvWorkload, target: Target) -> str | None:
    """What keeps every CUDA template with a staged tile from running this workload, or None."""
    if target.kind.name != "cuda":
        return f"target {target.kind.name} is not a CUDA GPU"
    if workload.dtype not in DTYPE_BYTES:
        return f"only {' and '.join(DTYPE_BYTES)}, not {workload.dtype}"
    smallest = min(tile_bytes(workload, cols, 1, 1) for cols in tile_columns(workload))
    if smallest > shared_limit(target):
        return f"one channel of the smallest tile takes {smallest} bytes of shared memory, of {shared_limit(target)}"
    if thread_limit(target) < WARP:
        return f"blocks of {thread_limit(target)} threads hold no warp"
    return None


def pixel_tiling(workload: ConvWorkload, knobs: Knobs, splits: int = 1) -> Tiling:
    """The tile of `pixels` x 32 pixels in rows of `cols`; one long row where the output is a single row."""
    return _tiling(workload, int(knobs["cols"]), int(knobs["pixels"]), int(knobs["channels"]), splits)


def tile_columns(workload: ConvWorkload) -> tuple[int, ...]:
    """Widths of a tile worth trying: parts of a warp, less than twice as wide as the output."""
    return tuple(cols for cols in (1, 2, 4, 8, 16, 32) if cols < 2 * workload.q) if workload.p > 1 else (WARP,)


def tile_bytes(workload: ConvWorkload, cols: int, pixels: int, channels: int) -> int:
    """Shared memory of one tile and chunk."""
    return _tiling(workload, cols, pixels, channels).elements * DTYPE_BYTES[workload.dtype]


def best_tile(workload: ConvWorkload, most_pixels: int, limit_bytes: int) -> tuple[int, int]:
    """(cols, pixels) of the tile that computes the fewest pixels in vain and copies the least halo.

    `limit_bytes` is what the tile of a single channel may take; the smallest tile is the answer if none fits.
    """
    candidates: list[tuple[bool, float, int, int]] = []
    for cols in tile_columns(workload):
        for pixels in range(1, most_pixels + 1):
            tiling = _tiling(workload, cols, pixels, 1)
            size = tiling.elements * DTYPE_BYTES[workload.dtype]
            grid_rows, grid_cols = tiling.grid
            # A nonzero costs one load of its own and one, times the bank conflicts, for every pixel of the thread.
            loads = tiling.pixels * (_conflicts(workload, tiling.cols, tiling.in_cols) + 1 / pixels)
            cost = grid_rows * grid_cols * (loads + 0.25 * tiling.elements)
            fits = size <= limit_bytes
            candidates.append((not fits, cost if fits else size, pixels, cols))
    *_, pixels, cols = min(candidates)
    return cols, pixels


def channels_within(workload: ConvWorkload, cols: int, pixels: int, budget_bytes: int) -> int:
    """Channels of a chunk whose tile keeps to a budget, at least one, in chunks as even as possible."""
    one = tile_bytes(workload, cols, pixels, 1)
    most = max(1, min(workload.c_per_group, budget_bytes // one))
    return -(-workload.c_per_group // -(-workload.c_per_group // most))


def tile_space(workload: ConvWorkload) -> dict[str, tuple[int | str, ...]]:
    """The knobs every CUDA template has."""
    return {
        "cols": tile_columns(workload),
        "pixels": (1, 2, 4, 7, 8, 14),
        "channels": tuple(sorted({-(-workload.c_per_group // chunks) for chunks in (1, 2, 4, 8, 16, 32, 64, 128)})),
        "warps": (1, 2, 4, 8, 16),
        "blocks_per_warp": (1, 2, 4, 8),
        "pad_to": (1, 2, 4),
        "format": ("csr", "sliced_ell:8", *(f"column_vector:{v}" for v in VECTORS if _whole(workload, v))),
    }


def format_for(workload: ConvWorkload, density: float) -> str:
    """Column vectors for a dense filter, where every loaded input feeds several multiply-adds, otherwise CSR."""
    vectors = [v for v in VECTORS if _whole(workload, v)]
    return f"column_vector:{vectors[-1]}" if vectors and density > DENSE_FROM else "csr"


def padding_for(workload: ConvWorkload, density: float, channels: int) -> int:
    """Nonzeros a step, few enough that padding adds about a tenth."""
    expected = density * channels * workload.r * workload.s
    return 4 if expected >= 16 else 2 if expected >= 6 else 1


def vector_of(knobs: Knobs) -> int:
    kind, _, size = str(knobs["format"]).partition(":")
    return int(size) if kind == "column_vector" else 1


def check_block(workload: ConvWorkload, target: Target, knobs: Knobs, warps: int, shared_bytes: int) -> None:
    """Refuse what a block cannot hold, or what would take minutes to compile.

    Parameters
    ----------
    warps : warps of a block
    shared_bytes : shared memory of a block

    Raises
    ------
    InputError
        Too many threads, registers or statements, too much shared memory, or a block that reaches over two groups.
    """
    sums = int(knobs["pixels"]) * int(knobs["blocks_per_warp"]) * vector_of(knobs)
    channels = int(knobs["warps"]) * int(knobs["blocks_per_warp"]) * vector_of(knobs)
    limits = {
        "threads a block": (warps * WARP, thread_limit(target)),
        "bytes of shared memory a block": (shared_bytes, shared_limit(target)),
        "sums a thread": (sums, MOST_SUMS),
        "products a step": (sums * int(knobs["pad_to"]), MOST_UNROLLED),
    }
    for what, (needed, allowed) in limits.items():
        if needed > allowed:
            raise InputError(f"{workload}: knobs {dict(knobs)}: {needed} {what}, {allowed} at most")
    if channels >= 2 * workload.k_per_group and channels > vector_of(knobs):
        raise InputError(f"{workload}: knobs {dict(knobs)}: half a block's {channels} channels would be idle")
    if workload.groups > 1 and workload.k_per_group % channels:
        raise InputError(f"{workload}: knobs {dict(knobs)}: a block of {channels} channels reaches over two groups")


def cut_output(sch: s_tir.Schedule, tiling: Tiling, knobs: Knobs) -> tuple[Any, dict[str, Any]]:
    """Cut the loops of "out" into those of a block, fused, and those inside a block, by name.

    Inside: warp (row blocks), lane_row and lane_col (the pixels of a warp, not fused yet: s_tir finds exact regions
    below exact loops only), kb and v (output channels), pixel_row and pixel_col (the pixels of a thread).
    """
    i, k, p, q = sch.get_loops(sch.get_sblock("out"))
    g, k = sch.split(k, [tiling.workload.groups, None])
    k_outer, warp, kb, v = sch.split(k, [None, int(knobs["warps"]), int(knobs["blocks_per_warp"]), vector_of(knobs)])
    lane_cols = min(tiling.cols, WARP)
    ty, pixel_row, lane_row = sch.split(p, [None, tiling.rows * lane_cols // WARP, WARP // lane_cols])
    tx, pixel_col, lane_col = sch.split(q, [None, tiling.cols // lane_cols, lane_cols])
    sch.reorder(i, g, ty, tx, k_outer, warp, lane_row, lane_col, kb, v, pixel_row, pixel_col)
    inside = {"warp": warp, "lane_row": lane_row, "lane_col": lane_col, "kb": kb, "v": v}
    return sch.fuse(i, g, ty, tx, k_outer), {**inside, "pixel_row": pixel_row, "pixel_col": pixel_col}


def sum_nonzeros(sch: s_tir.Schedule, loop: Any, pad_to: int, threads: dict[str, int]) -> Any:
    """Compute "part" in registers below `loop`, its "tile" staged in shared memory chunk by chunk.

    Parameters
    ----------
    loop : innermost loop of a consumer of "part" that is bound to threads, those over the lanes of a warp excepted
    pad_to : nonzeros a step
    threads : the thread axes of a block and their extents, lanes last; all of them copy the tile

    Returns
    -------
    LoopRV
        The loop over chunks, for `set_to_zero` once all threads are bound.
    """
    tile, part = sch.get_sblock("tile"), sch.get_sblock("part")
    sch.compute_at(part, loop, preserve_unit_loops=True)
    *outer, image, split, kb, v, _, _, pixel, lane, c, j = sch.get_loops(part)
    step, nonzero = sch.split(j, [None, pad_to])
    sch.reorder(lane, c, kb, step, nonzero, v, pixel)
    sch.bind(lane, "threadIdx.x")

    sch.set_scope(tile, 0, "shared.dyn")
    sch.compute_at(tile, c, preserve_unit_loops=True)
    copied = sch.get_loops(tile)[len([*outer, image, split, lane, c]) :]
    _, *axes = sch.split(sch.fuse(*copied), [None, *threads.values()])
    for axis, name in zip(axes, threads, strict=True):
        sch.bind(axis, name)

    mark_row_length(sch, step)
    for inner in (kb, nonzero, v, pixel):
        sch.unroll(inner)
    return c


def set_to_zero(sch: s_tir.Schedule, block: str, loop: Any) -> None:
    """Initialise a sum in front of `loop`: inside it, a row without nonzeros would never be."""
    init = sch.decompose_reduction(sch.get_sblock(block), loop)
    for inner in sch.get_loops(init):
        if sch.get(inner).kind == tirx.ForKind.SERIAL:
            sch.unroll(inner)


def _tiling(workload: ConvWorkload, cols: int, pixels: int, channels: int, splits: int = 1) -> Tiling:
    size = pixels * WARP
    cols = size if workload.p == 1 else cols
    if size % cols:
        raise InputError(f"{workload}: {size} pixels are no whole rows of {cols}")
    plain = Tiling(workload, size // cols, cols, channels, "halo", splits)
    pitches = range(plain.in_cols, int(plain.in_cols * WIDEST_PITCH) + 1)
    best = min(pitches, key=lambda pitch: (_conflicts(workload, cols, pitch), pitch))
    return Tiling(workload, size // cols, cols, channels, "halo", splits, best, WARP)


def _conflicts(workload: ConvWorkload, cols: int, pitch: int) -> int:
    """Loads of the busiest memory bank when a warp reads 32 neighbouring pixels of a tile with this row pitch."""
    step_h, step_w = workload.stride
    addresses = {lane // cols * step_h * pitch + lane % cols * step_w for lane in range(WARP)}
    words = {address * DTYPE_BYTES[workload.dtype] // BANK_BYTES for address in addresses}
    banks = [word % BANKS for word in words]
    return max(map(banks.count, banks))


def _whole(workload: ConvWorkload, vector: int) -> bool:
    """Blocks of `vector` output channels do not reach over two groups."""
    return workload.groups == 1 or workload.k_per_group % vector == 0
