"""Which tiles suit a layer on a GPU: the knobs the CUDA templates share, their limits and sensible values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tvm.target import Target

from tvm_sparse.compute.flat_tiling import FlatTiling, flat_pixels
from tvm_sparse.compute.packed_filter import segment_length
from tvm_sparse.compute.pair_tiling import PAIR, PairTiling, pair_axis
from tvm_sparse.compute.warp_tiling import WARP, Extents, WarpTiling
from tvm_sparse.errors import InputError
from tvm_sparse.schedules.base import Knobs
from tvm_sparse.schedules.gpu_target import shared_limit, thread_limit
from tvm_sparse.schedules.row_order import balanced_order
from tvm_sparse.workload import ELEMENT_BYTES, ConvWorkload

#: The knob "lanes" of positions of rows that lie one behind the other (compute/flat_tiling.py).
FLAT = "flat"
#: Sums a thread may keep in registers, and products the loop over nonzeros is unrolled to: more compile for minutes.
MOST_SUMS = 128
MOST_UNROLLED = 512
#: The knob "pairs" where a lane reads single elements.
NO_PAIRS = "no"
#: The knob "pairs" where only the few nonzeros of a step are summed in 16 bits.
NARROW_STEPS = "bfloat16"
#: Nonzeros of a row and chunk that may be summed in float16, for a relative error of 1.6e-3.
MOST_HALF_SUMMED = 128
#: Output channels of a row block that may share columns.
VECTORS = (2, 4, 8)
#: Above this density row blocks of several channels that share every column beat rows of their own nonzeros.
DENSE_FROM = 0.6
#: Pixels of a thread.
MOST_PIXELS = 14
#: Registers of a block of threads, and those of a thread that hold no sums.
REGISTERS, OTHER_REGISTERS = 65536, 24
#: Bytes of the int32 offset of a nonzero, and of the start and length of a row block.
OFFSET_BYTES, ROW_BYTES = 4, 4
#: Shared buffers: one to sum from, one to copy to; where they may start.
BUFFERS, BUFFER_ALIGNMENT = 2, 64


def extents(text: int | str) -> Extents:
    """(images, rows, columns) of a knob "1x2x16"."""
    images, rows, cols = map(int, str(text).split("x"))
    return images, rows, cols


def extents_text(sizes: Extents) -> str:
    return "x".join(map(str, sizes))


def tiling_of(workload: ConvWorkload, knobs: Knobs) -> WarpTiling | PairTiling:
    paired, pixels = knobs.get("pairs", NO_PAIRS) != NO_PAIRS, extents(knobs["pixels"])
    channels, splits = int(knobs["channels"]), int(knobs.get("splits", 1))
    if knobs["lanes"] == FLAT:
        if paired:
            raise InputError(f"{workload}: knobs {dict(knobs)}: no pairs in a flat tile")
        return FlatTiling(workload, (1, 1, WARP), pixels, channels, splits)
    return (PairTiling if paired else WarpTiling)(workload, extents(knobs["lanes"]), pixels, channels, splits)


def pair_options(workload: ConvWorkload) -> tuple[str, ...]:
    """Values of the knob "pairs": the dtype in which pairs are summed, none for float32.

    In float16 within a chunk of channels, in bfloat16, which has 8 bits, within a step.
    """
    if ELEMENT_BYTES.get(workload.dtype) != 2:
        return ()
    return (NO_PAIRS,) if pair_axis(workload) is None else (NO_PAIRS, "float32", workload.dtype)


def default_pairs(workload: ConvWorkload, density: float) -> dict[str, int | str]:
    """The knob "pairs" of a layer that was never tuned: sums in the narrowest dtype there is, faster on every layer
    that was measured; single elements for a dense filter, which is not bound by loads."""
    options = pair_options(workload)
    return {"pairs": options[-1] if density <= DENSE_FROM else NO_PAIRS} if options else {}


def check_pairs(workload: ConvWorkload, knobs: Knobs, longest_row: int) -> None:
    """Refuse to sum many nonzeros in float16.

    Raises
    ------
    InputError
        A row has too many nonzeros in a chunk.
    """
    if chunk_dtype(knobs) == "float16" and longest_row > MOST_HALF_SUMMED:
        raise InputError(
            f"{workload}: {longest_row} nonzeros of a row and chunk summed in float16, {MOST_HALF_SUMMED} at most; "
            "take fewer channels a chunk or pairs=float32"
        )


def why_not(workload: ConvWorkload, target: Target) -> str | None:
    """What keeps every CUDA template with a staged tile from running this workload, or None."""
    if target.kind.name != "cuda":
        return f"target {target.kind.name} is not a CUDA GPU"
    if workload.dtype not in ELEMENT_BYTES:
        return f"only {', '.join(ELEMENT_BYTES)}, not {workload.dtype}"
    knobs: Knobs = {"warps": 1, "blocks_per_warp": 1, "format": "csr"}
    smallest = min(
        staged_bytes(WarpTiling(workload, lanes, (1, 1, 1), 1), knobs, workload.r * workload.s)
        for lanes in lane_shapes(workload)
    )
    if smallest > shared_limit(target):
        return f"one channel of the smallest tile takes {smallest} bytes of shared memory, of {shared_limit(target)}"
    if thread_limit(target) < WARP:
        return f"blocks of {thread_limit(target)} threads hold no warp"
    return None


def chunk_dtype(knobs: Knobs) -> str:
    """In which a row's nonzeros in a chunk are summed."""
    return "float16" if knobs.get("pairs") == "float16" else "float32"


def lane_shapes(workload: ConvWorkload) -> tuple[Extents, ...]:
    """The ways to lay a warp over images, rows and columns that leave less than half of it idle along every axis."""
    powers = (1, 2, 4, 8, 16, 32)
    return tuple(
        (images, rows, WARP // images // rows)
        for images in powers
        for rows in powers
        if images * rows <= WARP
        and (images == 1 or images < 2 * workload.n)
        and (rows == 1 or rows < 2 * workload.p)
        and (images * rows == WARP or WARP // images // rows < 2 * workload.q or images * rows == 1)
    )


def row_order(workload: ConvWorkload, weight: NDArray, knobs: Knobs) -> NDArray[np.int32] | None:
    """The order of rows that gives warps and blocks alike many nonzeros, if the filter's own does not.

    Those of a group of the convolution stay together.
    """
    if vector_of(knobs) > 1:
        return None
    channels, pad_to = int(knobs["channels"]), int(knobs["pad_to"])
    mask = np.pad(weight != 0, ((0, 0), (0, -weight.shape[1] % channels), (0, 0), (0, 0)))
    loads = mask.reshape(len(weight), mask.shape[1] // channels, -1).sum(axis=2)
    loads = -(-loads // pad_to) * pad_to
    rows, each = np.arange(len(weight), dtype=np.int32), workload.k_per_group
    groups = [rows[first : first + each] for first in range(0, len(rows), each)]
    orders = [balanced_order(loads[own], int(knobs["blocks_per_warp"]), int(knobs["warps"])) for own in groups]
    if all(order is None for order in orders):
        return None
    return np.concatenate([own if order is None else own[order] for own, order in zip(groups, orders, strict=True)])


def vector_of(knobs: Knobs) -> int:
    kind, _, size = str(knobs["format"]).partition(":")
    return int(size) if kind == "column_vector" else 1


def format_for(workload: ConvWorkload, density: float) -> str:
    """Column vectors for a dense filter, where every loaded input feeds several multiply-adds, otherwise CSR."""
    vectors = [v for v in VECTORS if _whole(workload, v)]
    return f"column_vector:{vectors[-1]}" if vectors and density > DENSE_FROM else "csr"


def shape_space(workload: ConvWorkload) -> dict[str, tuple[int | str, ...]]:
    """The knobs of a WarpTiling: how pixels lie on lanes and threads, and the channels of a chunk."""
    return {
        "lanes": tuple(map(extents_text, lane_shapes(workload))),
        "pixels": tuple(map(extents_text, pixel_shapes(workload))),
        "channels": tuple(sorted({-(-workload.c_per_group // chunks) for chunks in (1, 2, 4, 8, 16, 32, 64, 128)})),
    }


def tile_space(workload: ConvWorkload) -> dict[str, tuple[int | str, ...]]:
    """The knobs of every CUDA template that sums the nonzeros of staged tiles."""
    space, flat = shape_space(workload), flat_pixels(workload, MOST_PIXELS)
    return {
        **space,
        "lanes": (*space["lanes"], *((FLAT,) if flat else ())),
        "pixels": tuple(dict.fromkeys((*space["pixels"], *map(extents_text, flat)))),
        "warps": warp_counts(workload),
        "blocks_per_warp": (1, 2, 4, 8),
        "pad_to": (1, 2, 4),
        "format": ("csr", "sliced_ell:8", *(f"column_vector:{v}" for v in VECTORS if _whole(workload, v))),
    }


def warp_counts(workload: ConvWorkload) -> tuple[int, ...]:
    """Warps of a block: powers of two, and what divides the output channels, so that no block has idle warps."""
    return tuple(n for n in range(1, 33) if n & (n - 1) == 0 or workload.k_per_group % n == 0)


def pixel_shapes(workload: ConvWorkload) -> tuple[Extents, ...]:
    """Pixels of a thread along images, rows and columns, MOST_PIXELS at most."""
    sizes = (1, 2, 4, 7, 8, 14)
    return tuple(
        (images, rows, cols)
        for images in (1, 2)
        for rows in sizes
        for cols in sizes
        if images * rows * cols <= MOST_PIXELS and images <= workload.n and rows <= workload.p and cols <= workload.q
    )


def staged_bytes(tiling: WarpTiling | PairTiling, knobs: Knobs, entries: int, workers: int = 1) -> int:
    """Shared memory of a block: `workers` chunks of input and filter, each in two buffers, rounded up as TVM does."""
    size = ELEMENT_BYTES[tiling.workload.dtype]
    rows = int(knobs["warps"]) * int(knobs["blocks_per_warp"])
    entries = segment_length(entries)
    parts = [tiling.elements * size, entries * vector_of(knobs) * size, entries * OFFSET_BYTES, rows * ROW_BYTES]
    # Images that are paired wait in registers, not in a second buffer.
    one_tile = isinstance(tiling, PairTiling) and tiling.axis == "images"
    parts = [workers * part * (1 if one_tile and not i else BUFFERS) for i, part in enumerate(parts)]
    return sum(-(-part // BUFFER_ALIGNMENT) * BUFFER_ALIGNMENT for part in parts)


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
    sums = math.prod(extents(knobs["pixels"])) * int(knobs["blocks_per_warp"]) * vector_of(knobs)
    held = 0
    if knobs.get("pairs", NO_PAIRS) != NO_PAIRS:
        sums *= PAIR
        # The next chunk of images that are paired waits in registers.
        if pair_axis(workload) == "images":
            held = -(-tiling_of(workload, knobs).elements // PAIR // (warps * WARP))
    channels = int(knobs["warps"]) * int(knobs["blocks_per_warp"]) * vector_of(knobs)
    limits = {
        "threads a block": (warps * WARP, thread_limit(target)),
        "bytes of shared memory a block": (shared_bytes, shared_limit(target)),
        "sums a thread": (sums, MOST_SUMS),
        "products a step": (sums * int(knobs["pad_to"]), MOST_UNROLLED),
        "registers a block": ((sums + held + OTHER_REGISTERS) * warps * WARP, REGISTERS),
    }
    for what, (needed, allowed) in limits.items():
        if needed > allowed:
            raise InputError(f"{workload}: knobs {dict(knobs)}: {needed} {what}, {allowed} at most")
    if channels >= 2 * workload.k_per_group and channels > vector_of(knobs):
        raise InputError(f"{workload}: knobs {dict(knobs)}: half a block's {channels} channels would be idle")
    if workload.groups > 1 and workload.k_per_group % channels:
        raise InputError(f"{workload}: knobs {dict(knobs)}: a block of {channels} channels reaches over two groups")


def shared_evenly(loops: Sequence[int], workers: int) -> bool:
    """Whether whole loops over a thread's sums, innermost first, and a factor of the next one make up the workers.

    s_tir can undo no other cut of the fused loops, whose extents are given outermost first.
    """
    for extent in reversed(loops):
        if extent % workers == 0:
            return True
        if workers % extent:
            return False
        workers //= extent
    return workers == 1


def _whole(workload: ConvWorkload, vector: int) -> bool:
    """Blocks of `vector` output channels do not reach over two groups."""
    return workload.groups == 1 or workload.k_per_group % vector == 0
