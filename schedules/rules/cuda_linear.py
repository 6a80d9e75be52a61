"""CUDA rule for linear layers: out (i, j) = epilogue(a (i, k) · w (k, j)), at small batch bound by reading w once.

    block = JT columns, all rows or up to 32 of them:
        thread (part of k, rows i, 4 columns j):
            acc[rows, 4] += a[rows, k] · w[k, 4 columns]   over its part of k                          (registers)
        partial[part, i, j] := acc                                                              (shared memory)
        out[i, j] := epilogue(Σ_part partial[part, i, j])

The threads of a warp read runs of 4·JT bytes of w, many rows at a time, and each element of w once. No block waits for
another, so it is one kernel; there are blocks for every multiprocessor because JT is small. Where a thread has 8 rows,
products count as well as reading: a and w are then copied ahead to shared memory, step by step.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product as product_of
from typing import Any

from tvm import s_tir, tirx
from tvm.s_tir.dlight import ScheduleRule
from tvm.target import Target

from tvm_sparse.schedules.gpu_target import shared_limit
from tvm_sparse.schedules.rules.base import inline_injective, inspect_raw, only_reduction
from tvm_sparse.schedules.rules.cpu_linear import Product, match_product

WARP, VECTOR = 32, 4
#: Columns of a block; a run of fewer than 8 would waste half of every access to memory.
WIDTHS = (32, 16, 8)
#: Blocks that keep every multiprocessor of a large GPU busy, two each.
ENOUGH_BLOCKS = 240
#: Rows of a thread; rows of a block, at most and at least where the layer has more.
ROWS, MOST_ROWS, LEAST_ROWS = 8, 32, 16
#: Warps of a block; rows of w that a thread reads together, at most.
WARPS, TOGETHER = 16, 8
#: Runs that may be staged at a time: more hide more latency.
PIECES = (1, 2, 4)
SHARED, FLOAT_BYTES = "shared.dyn", 4


@dataclass(frozen=True)
class Cut:
    """How rows are cut into blocks, and how a block shares its columns, rows and k among its threads."""

    row_blocks: int
    columns: int
    row_groups: int
    rows: int
    warps: int
    k_lanes: int
    together: int
    #: Runs of `together` for all threads that are staged at a time; 0 where nothing is.
    pieces: int


class Linear(ScheduleRule):
    """Linear layers with the weight (k, j) and any elementwise epilogue."""

    def apply(self, func: tirx.PrimFunc, target: Target, tunable: bool) -> s_tir.Schedule | None:
        """Return the schedule, or None when `func` is no such product, or one whose extents do not divide."""
        sch = s_tir.Schedule(func)
        infos = inspect_raw(sch)
        reduction = only_reduction(infos)
        if reduction is None:
            return None
        total = reduction.block_rv
        product = match_product(sch.get(total))
        after = inline_injective(sch, infos[infos.index(reduction) + 1 :])
        if product is None or product.weight_is_transposed or infos[0] is not reduction or len(after) > 1:
            return None
        cut = _cut(product, shared_limit(target)) if product.size(*product.batch) == 1 else None
        if cut is None or str(sch.get(total).writes[0].source.dtype) != "float32":
            return None
        _schedule(sch, total, after[0].block_rv if after else sch.cache_write(total, 0, "local"), product, cut)
        return sch


def _cut(product: Product, shared_bytes: int) -> Cut | None:
    rows, columns, k = product.size(*product.i), product.extents[product.j], product.extents[product.k]
    row_blocks = next(n for n in range(1, rows + 1) if rows % n == 0 and rows // n <= MOST_ROWS)
    rows //= row_blocks
    if row_blocks > 1 and rows < LEAST_ROWS:
        return None
    own = next((n for n in range(ROWS, 0, -1) if rows % n == 0 and WARP % (rows // n) == 0), 0)
    if not own:
        return None
    groups = rows // own
    fitting = [n for n in WIDTHS if columns % n == 0 and WARP % (n // VECTOR * groups) == 0]
    least = ENOUGH_BLOCKS // 2 if own == ROWS else ENOUGH_BLOCKS
    enough = [n for n in fitting if columns // n * row_blocks >= least]
    for tested, width in product_of((False, True), enough or fitting[::-1]):
        lanes = WARP // (width // VECTOR * groups)
        for warps in (WARPS, WARPS // 2, WARPS // 4):
            # Threads without an output to add up would put a test into the loop over the parts; a thread with a single
            # run of w adds up as much as it multiplies.
            idle = rows > 1 and rows * width % (warps * WARP)
            short = own < ROWS and k < 2 * warps * lanes * TOGETHER
            if k % (warps * lanes * VECTOR) or ((idle or short) and not tested):
                continue
            together = TOGETHER if k % (warps * lanes * TOGETHER) == 0 else VECTOR
            chunk = warps * lanes * together
            sums = chunk // together * rows * width * FLOAT_BYTES
            fitting_pieces = [0] if sums <= shared_bytes else []
            if own == ROWS:
                staged = {
                    n: 2 * n * chunk * width + 2 * rows * (n * chunk + WARP) for n in PIECES if k % (n * chunk) == 0
                }
                fitting_pieces += [n for n, count in staged.items() if sums + FLOAT_BYTES * count <= shared_bytes]
            if fitting_pieces:
                return Cut(row_blocks, width, groups, own, warps, lanes, together, max(fitting_pieces))
    return None


def _schedule(sch: s_tir.Schedule, total: Any, out: Any, product: Product, cut: Cut) -> None:
    loops = sch.get_loops(total)
    _, warp, lane, _ = sch.split(loops[product.k], [None, cut.warps, cut.k_lanes, cut.together])
    partial = sch.rfactor(sch.fuse(warp, lane), 0)
    stored = sch.cache_write(partial, 0, "local")

    out_loops = sch.get_loops(out)
    block, column = sch.split(out_loops[product.j if product.j < len(out_loops) else -1], [None, cut.columns])
    rows = [loop for n, loop in enumerate(out_loops) if n != product.j]
    row_block, out_row = sch.split(sch.fuse(*rows) if len(rows) > 1 else rows[0], [cut.row_blocks, None])
    sch.reorder(block, row_block, out_row, column)
    block = sch.fuse(block, row_block)  # blocks of the same columns run side by side and share w in the L2 cache
    sch.bind(block, "blockIdx.x")
    sch.compute_at(total, block, preserve_unit_loops=True)
    sch.compute_at(stored, block, preserve_unit_loops=True)
    sch.set_scope(stored, 0, SHARED)

    part, *own = sch.get_loops(stored)[1:]
    warp, k_lane = sch.split(part, [cut.warps, cut.k_lanes])
    row = sch.fuse(*own[:-1]) if len(own) > 2 else own[0]
    if cut.row_blocks == 1:
        own_row, group = sch.split(row, [cut.rows, cut.row_groups])  # neighbouring rows: different banks
    else:
        group, own_row = sch.split(row, [cut.row_groups, cut.rows])  # s_tir cannot undo the other way here
    quad, element = sch.split(own[-1], [None, VECTOR])
    sch.reorder(warp, k_lane, group, quad, own_row, element)
    lane = sch.fuse(k_lane, group, quad)
    sch.bind(warp, "threadIdx.y")
    sch.bind(lane, "threadIdx.x")
    sch.unroll(own_row)
    sch.vectorize(element)
    _accumulate(sch, partial, lane, cut)

    output = sch.fuse(out_row, column)
    sch.compute_at(total, output, preserve_unit_loops=True)
    sch.set_scope(total, 0, "local")
    # Split after compute_at, so that the test for the last output guards its sum too.
    each, warp, lane = sch.split(output, [None, cut.warps, WARP])
    sch.reorder(warp, lane, each)
    sch.bind(warp, "threadIdx.y")
    sch.bind(lane, "threadIdx.x")
    part = sch.get_loops(total)[4]
    sch.decompose_reduction(total, part)
    if cut.row_groups * cut.rows == 1:
        sch.blockize(part)  # a block of its own takes the test out of the loop, whose loads then run ahead


def _accumulate(sch: s_tir.Schedule, partial: Any, lane: Any, cut: Cut) -> None:
    """Sum a thread's part of k into registers, the weights of some rows read ahead."""
    sch.compute_at(partial, lane, preserve_unit_loops=True)
    inner = sch.get_loops(partial)[3:]
    *own, step, together = inner
    sch.reorder(step, together, *own)
    for loop in (together, *own):
        sch.unroll(loop)
    first = len(sch.get(partial).reads) - 2
    staged = cut.pieces > 0
    if staged:
        step, inside = sch.split(step, [None, cut.pieces])
        _stage(sch, partial, first, step, cut)
    else:
        inside = step
    for operand in (first, first + 1):
        copy = sch.cache_read(partial, operand, "local")
        sch.compute_at(copy, inside, preserve_unit_loops=True)
        *outer, last = sch.get_loops(copy)[5 if staged else 4 :]
        again, element = sch.split(last, [None, VECTOR])
        for loop in (*outer, again):
            sch.unroll(loop)
        # nvcc joins loads of single elements: were all of shared memory's vectors, TVM 0.27 would refuse to copy ahead.
        (sch.unroll if staged else sch.vectorize)(element)
    for loop in sch.get_loops(sch.decompose_reduction(partial, step))[3:]:
        sch.unroll(loop)


def _stage(sch: s_tir.Schedule, partial: Any, first: int, step: Any, cut: Cut) -> None:
    """Copy the next step's operands to shared memory while this step's are multiplied."""
    for operand in (first, first + 1):
        copy = sch.cache_read(partial, operand, SHARED)
        sch.compute_at(copy, step, preserve_unit_loops=True)
        *outer, run = sch.get_loops(copy)[4:]
        of_weight = int(sch.get(run).extent) == cut.columns
        run, element = sch.split(run, [None, VECTOR])
        _, warp, lane = sch.split(sch.fuse(*outer, run), [None, cut.warps, WARP])
        sch.bind(warp, "threadIdx.y")
        sch.bind(lane, "threadIdx.x")
        sch.vectorize(element)
        if not of_weight:
            # Rows of a in different banks: threads of one warp read several of them at the same place.
            sch.storage_align(copy, 0, axis=-2, factor=WARP, offset=VECTOR)
    sch.annotate(step, "software_pipeline_stage", [0, 0, 1])
    sch.annotate(step, "software_pipeline_order", [0, 1, 2])
    sch.annotate(step, "software_pipeline_async_stages", [0])
