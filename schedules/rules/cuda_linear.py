"""CUDA rule for linear layers: out (i, j) = epilogue(a (i, k) · w (k, j)), at small batch bound by reading w once.

    block = JT columns, all rows or up to 32 of them:
        thread (part of k, rows i, 4 columns j):
            acc[rows, 4] += a[rows, k] · w[k, 4 columns]   over its part of k                          (registers)
        partial[part, i, j] := acc                                                              (shared memory)
        out[i, j] := epilogue(Σ_part partial[part, i, j])

The threads of a warp read runs of 4·JT bytes of w, many rows at a time, and each element of w once. No block waits for
another, so it is one kernel; there are blocks for every multiprocessor because JT is small.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product as product_of
from typing import Any

from tvm import s_tir, tirx
from tvm.s_tir.dlight import ScheduleRule
from tvm.target import Target

from tvm_sparse.schedules.rules.base import inline_injective, inspect_raw
from tvm_sparse.schedules.rules.cpu_linear import Product, match_product

WARP, VECTOR = 32, 4
#: Blocks that keep every multiprocessor of a large GPU busy.
ENOUGH_BLOCKS = 120
#: Rows of a thread; rows of a block, at most and at least where the layer has more.
ROWS, MOST_ROWS, LEAST_ROWS = 8, 32, 16
#: Warps of a block; rows of w that a thread reads together, at most, and where products count as well as reading.
WARPS, TOGETHER, FEW_TOGETHER = 16, 8, 4
SHARED = "shared.dyn"


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


class Linear(ScheduleRule):
    """Linear layers with the weight (k, j) and any elementwise epilogue."""

    def apply(self, func: tirx.PrimFunc, target: Target, tunable: bool) -> s_tir.Schedule | None:
        """Return the schedule, or None when `func` is no such product, or one whose extents do not divide."""
        sch = s_tir.Schedule(func)
        infos = inspect_raw(sch)
        reductions = [info for info in infos if not info.is_injective()]
        if len(reductions) != 1:
            return None
        total = reductions[0].block_rv
        product = match_product(sch.get(total))
        after = inline_injective(sch, infos[infos.index(reductions[0]) + 1 :])
        if product is None or product.weight_is_transposed or infos[0] is not reductions[0] or len(after) > 1:
            return None
        cut = _cut(product) if product.size(*product.batch) == 1 else None
        if cut is None or str(sch.get(total).writes[0].source.dtype) != "float32":
            return None
        _schedule(sch, total, after[0].block_rv if after else sch.cache_write(total, 0, "local"), product, cut)
        return sch


def _cut(product: Product) -> Cut | None:
    rows, columns, k = product.size(*product.i), product.extents[product.j], product.extents[product.k]
    row_blocks = next(n for n in range(1, rows + 1) if rows % n == 0 and rows // n <= MOST_ROWS)
    rows //= row_blocks
    if row_blocks > 1 and rows < LEAST_ROWS:
        return None
    own = next((n for n in range(ROWS, 0, -1) if rows % n == 0 and WARP % (rows // n) == 0), 0)
    if not own:
        return None
    groups = rows // own
    fitting = [n for n in (32, 16, 8, 4) if columns % n == 0 and WARP % (n // VECTOR * groups) == 0]
    enough = [n for n in fitting if columns // n * row_blocks >= ENOUGH_BLOCKS]
    widths = [*enough, *(n for n in reversed(fitting) if n not in enough)]
    for tested, width in product_of((False, True), widths):
        lanes = WARP // (width // VECTOR * groups)
        for warps in (WARPS, WARPS // 2, WARPS // 4):
            # Threads without an output to add up would put a test into the loop over the parts.
            if k % (warps * lanes * VECTOR) or (rows > 1 and rows * width % (warps * WARP) and not tested):
                continue
            most = TOGETHER if own < ROWS else FEW_TOGETHER
            together = most if k % (warps * lanes * most) == 0 else VECTOR
            return Cut(row_blocks, width, groups, own, warps, lanes, together)
    return None


def _schedule(sch: s_tir.Schedule, total: Any, out: Any, product: Product, cut: Cut) -> None:
    loops = sch.get_loops(total)
    _, warp, lane, _ = sch.split(loops[product.k], [None, cut.warps, cut.k_lanes, cut.together])
    partial = sch.rfactor(sch.fuse(warp, lane), 0)
    stored = sch.cache_write(partial, 0, "local")

    out_loops = sch.get_loops(out)
    block, column = sch.split(out_loops[product.j if product.j < len(out_loops) else -1], [None, cut.columns])
    rows = [loop for n, loop in enumerate(out_loops) if n != product.j]
    row_block, row = sch.split(sch.fuse(*rows) if len(rows) > 1 else rows[0], [cut.row_blocks, None])
    sch.reorder(block, row_block, row, column)
    block = sch.fuse(block, row_block)  # blocks of the same columns run side by side and share w in the L2 cache
    sch.bind(block, "blockIdx.x")
    sch.compute_at(total, block, preserve_unit_loops=True)
    sch.compute_at(stored, block, preserve_unit_loops=True)
    sch.set_scope(stored, 0, SHARED)

    part, *own = sch.get_loops(stored)[1:]
    warp, k_lane = sch.split(part, [cut.warps, cut.k_lanes])
    group, own_row = sch.split(sch.fuse(*own[:-1]) if len(own) > 2 else own[0], [cut.row_groups, cut.rows])
    quad, element = sch.split(own[-1], [None, VECTOR])
    sch.reorder(warp, k_lane, group, quad, own_row, element)
    lane = sch.fuse(k_lane, group, quad)
    sch.bind(warp, "threadIdx.y")
    sch.bind(lane, "threadIdx.x")
    sch.unroll(own_row)
    sch.vectorize(element)
    _accumulate(sch, partial, lane, cut)

    output = sch.fuse(row, column)
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
    for operand in (first, first + 1):
        copy = sch.cache_read(partial, operand, "local")
        sch.compute_at(copy, step, preserve_unit_loops=True)
        *outer, last = sch.get_loops(copy)[4:]
        again, element = sch.split(last, [None, VECTOR])
        for loop in (*outer, again):
            sch.unroll(loop)
        sch.vectorize(element)
    for loop in sch.get_loops(sch.decompose_reduction(partial, step))[3:]:
        sch.unroll(loop)
