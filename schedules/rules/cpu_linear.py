"""CPU rule for matrix products: linear layers of batch 1 at memory speed, larger ones with a register tile."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from tvm import ir, s_tir, tirx
from tvm.s_tir.dlight import ScheduleRule
from tvm.target import Target

from tvm_sparse.schedules.cpu_target import cores_of, lanes_of, vector_bits
from tvm_sparse.schedules.rules.base import (
    PARALLEL_MIN_WORK,
    accesses_of,
    exact_lanes,
    inline_injective,
    inspect,
    largest_divisor,
    only_reduction,
)
from tvm_sparse.schedules.rules.spatial_nest import schedule_spatial
from tvm_sparse.schedules.rules.window_pattern import loads_in

STREAMED_ROWS = 8
"""Rows of the weight read together, so that an accumulator is loaded and stored once for all of them."""

ROWS_PER_DOT = 4
"""Outputs whose dot products run together: as many independent chains of additions."""

FEW_ROWS = 3
"""Up to this many rows of the activation a linear layer is bound by reading its weight."""


@dataclass(frozen=True)
class Product:
    """Loop positions of out[batch, i, j] += a[batch, i, k] · w[batch, k, j]."""

    batch: tuple[int, ...]
    i: tuple[int, ...]
    j: int
    k: int
    extents: tuple[int, ...]
    weight_is_transposed: bool

    def size(self, *loops: int) -> int:
        """Product of the extents of some loops."""
        return prod(self.extents[n] for n in loops)


class Linear(ScheduleRule):
    """Matrix products with any weight layout and any elementwise epilogue."""

    def apply(self, func: tirx.PrimFunc, target: Target, tunable: bool) -> s_tir.Schedule | None:
        """Return the schedule, or None when `func` is no matrix product with one reduction axis."""
        sch = s_tir.Schedule(func)
        infos = inspect(sch)
        reduction = only_reduction(infos)
        if reduction is None:
            return None
        block = reduction.block_rv
        product = match_product(sch.get(block))
        if product is None:
            return None
        remaining = inline_injective(sch, infos)
        lanes = lanes_of(target, sch.get(block).writes[0].source.dtype)
        few = product.size(*product.i) <= FEW_ROWS and not product.batch
        if product.weight_is_transposed:
            _dot_rows(sch, block, product, target, lanes)
        elif few and largest_divisor(product.extents[product.k], 2 * cores_of(target)) > 1:
            _stream_weight(sch, block, product, target, lanes)
        elif _power_of_two_lanes(product.extents[product.j], lanes) > 1:
            _register_tile(sch, block, product, target, lanes)
        else:
            return None
        for info in remaining:
            if info.is_injective():
                schedule_spatial(sch, info.block_rv, target)
        return sch


def match_product(block: s_tir.SBlock) -> Product | None:
    """Read a reduction block in normal form as a matrix product."""
    store = block.body
    if not isinstance(store, tirx.BufferStore) or not isinstance(store.value, tirx.Add) or len(block.writes) != 1:
        return None
    if not isinstance(store.value.b, tirx.Mul) or len(loads_in(store.value.b)) != 2:
        return None
    if not isinstance(store.value.a, ir.TensorLoad) or "float" not in str(store.buffer.dtype):
        return None
    variables = [v.var for v in block.iter_vars]
    extents = tuple(int(v.dom.extent) for v in block.iter_vars)
    reduce = [n for n, v in enumerate(block.iter_vars) if v.iter_type == tirx.IterVar.CommReduce]
    accesses = accesses_of(block)
    coefficients = accesses.coefficients(variables)
    if len(reduce) != 1 or accesses.loose or any(c is None for c in coefficients):
        return None
    stores = [c for c, is_store in zip(coefficients, accesses.is_store, strict=True) if is_store]
    operands = [c for c, is_store in zip(coefficients, accesses.is_store, strict=True) if not is_store][-2:]
    (k,), out = reduce, stores[0]
    spatial = [n for n in range(len(variables)) if n != k]
    columns = [n for n in spatial if out is not None and out[n] == 1 and extents[n] > 1]
    if not columns or out is None:
        return None
    j = columns[-1]
    for a, w in (operands, operands[::-1]):
        if a is None or w is None or a[j] != 0 or w[j] == 0 or not a[k] or not w[k]:
            continue
        i = tuple(n for n in spatial if n != j and w[n] == 0)
        batch = tuple(n for n in spatial if n != j and w[n] != 0)
        if w[j] == 1:
            return Product(batch, i, j, k, extents, False)
        if w[k] == 1 and a[k] == 1:
            return Product(batch, i, j, k, extents, True)
    return None


def _stream_weight(sch: s_tir.Schedule, block: Any, product: Product, target: Target, lanes: int) -> None:
    """Each core reads its own rows of the weight in memory order; the cores' partial results are added at the end."""
    loops = sch.get_loops(block)
    k_size, j_size = product.extents[product.k], product.extents[product.j]
    parts = cores_of(target) if k_size % cores_of(target) == 0 else largest_divisor(k_size, 2 * cores_of(target))
    part, _ = sch.split(loops[product.k], [parts, None])
    partial = sch.rfactor(part, 0)
    loops = sch.get_loops(partial)
    k_loops, others = loops[product.k : product.k + 2], [*loops[: product.k], *loops[product.k + 2 :]]
    part, k = k_loops
    outer, rows = sch.split(k, [None, largest_divisor(k_size // parts, STREAMED_ROWS)])
    j = others[product.j if product.j < product.k else product.j - 1]
    i = [loop for loop in others if loop is not j]
    vector = _power_of_two_lanes(j_size, lanes)
    if vector > 1:
        j, lane = sch.split(j, [None, vector])
        sch.reorder(part, outer, *i, j, rows, lane)
        sch.vectorize(lane)
    else:
        sch.reorder(part, outer, *i, j, rows)
    sch.unroll(rows)
    if product.size(*product.i, product.j, product.k) >= PARALLEL_MIN_WORK:
        sch.parallel(part)
    sch.decompose_reduction(partial, outer)
    loops = sch.get_loops(block)
    sch.reorder(loops[product.k], *(loop for n, loop in enumerate(loops) if n != product.k))
    sch.decompose_reduction(block, loops[product.k])


def _power_of_two_lanes(extent: int, lanes: int) -> int:
    """The widest vector that divides `extent`; accumulators of other widths are padded by LLVM and spill."""
    return next((n for n in (lanes, lanes // 2, lanes // 4) if n > 1 and extent % n == 0), 1)


def _register_tile(sch: s_tir.Schedule, block: Any, product: Product, target: Target, lanes: int) -> None:
    """An i × j tile of accumulators stays in registers over the whole of k."""
    loops = sch.get_loops(block)
    i_last = product.extents[product.i[-1]] if product.i else 1
    j_size = product.extents[product.j]
    vector = _power_of_two_lanes(j_size, lanes)
    registers = 24 if vector_bits(target) >= 512 else 12
    rows, vectors = max(
        (
            (r, v)
            for r in range(1, 9)
            for v in range(1, 9)
            if i_last % r == 0 and (j_size // vector) % v == 0 and r * v <= registers
        ),
        key=lambda tile: (tile[0] * tile[1] / (tile[0] + tile[1]), tile[1]),
    )
    batch, k = [loops[n] for n in product.batch], loops[product.k]
    coarse_i, fine_i = [loops[n] for n in product.i], []
    if product.i:
        coarse_i[-1], inner = sch.split(coarse_i[-1], [None, largest_divisor(product.extents[product.i[-1]], rows)])
        fine_i.append(inner)
    coarse_j, tile_j, lane = sch.split(loops[product.j], [None, vectors, vector])
    sch.reorder(*batch, coarse_j, *coarse_i, k, *fine_i, tile_j, lane)
    for loop in (*fine_i, tile_j):
        sch.unroll(loop)
    sch.vectorize(lane)
    result = sch.cache_write(block, 0, "local")
    outer = sch.fuse(*batch, coarse_j)
    if product.size(*product.batch, *product.i, product.j, product.k) >= PARALLEL_MIN_WORK:
        sch.parallel(outer)
    sch.reverse_compute_at(result, coarse_i[-1] if coarse_i else outer, preserve_unit_loops=True)
    init = sch.decompose_reduction(block, k)
    sch.vectorize(sch.get_loops(init)[-1])
    sch.vectorize(sch.split(sch.get_loops(result)[-1], [None, vector])[1])


def _dot_rows(sch: s_tir.Schedule, block: Any, product: Product, target: Target, lanes: int) -> None:
    """Weight (j, k): one vector accumulator an output, over k in memory order; its lanes are added at the end."""
    loops = sch.get_loops(block)
    k_size = product.extents[product.k]
    vector = exact_lanes(k_size, lanes)
    if vector < 4:
        raise ValueError(f"no vector length divides the {k_size} terms")
    _, lane = sch.split(loops[product.k], [None, vector])
    partial = sch.rfactor(lane, -1)
    *spatial, lane = sch.get_loops(block)
    at = {n: loop for n, loop in zip((n for n in range(len(product.extents)) if n != product.k), spatial, strict=True)}
    coarse_j, fine_j = sch.split(at[product.j], [None, largest_divisor(product.extents[product.j], ROWS_PER_DOT)])
    batch, i = [at[n] for n in product.batch], [at[n] for n in product.i]
    sch.reorder(*batch, coarse_j, *i, fine_j, lane)
    outer = sch.fuse(*batch, coarse_j)
    if prod(product.extents) >= PARALLEL_MIN_WORK:
        sch.parallel(outer)
    sch.compute_at(partial, outer, preserve_unit_loops=True)
    lane, *inner = sch.get_loops(partial)[1:]
    rows, shared = [inner[n] for n in product.i], []
    if rows:
        rows[-1], tile = sch.split(rows[-1], [None, largest_divisor(product.extents[product.i[-1]], ROWS_PER_DOT)])
        shared.append(tile)
    sch.reorder(*rows, inner[product.k], *shared, inner[product.j], lane)
    for loop in (*shared, inner[product.j]):
        sch.unroll(loop)
    sch.vectorize(lane)
    init = sch.decompose_reduction(partial, inner[product.k])
    sch.vectorize(sch.get_loops(init)[-1])
