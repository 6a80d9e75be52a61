"""One reduction block on a CPU: vectors over the output when that is contiguous, else over the reduction."""

from __future__ import annotations

from math import prod
from typing import Any

from tvm import s_tir, tirx
from tvm.target import Target

from tvm_sparse.schedules.cpu_target import lanes_of, vector_bits
from tvm_sparse.schedules.rules.base import (
    MAX_VECTOR_EXTENT,
    Accesses,
    accesses_of,
    exact_lanes,
    extent_of,
    largest_divisor,
)
from tvm_sparse.schedules.rules.spatial_nest import parallel_outer

ROWS_SHARING_LOADS = 4
"""Outputs along a second axis that reuse one loaded vector (a convolution's channels); half with 16 registers."""

VECTORS_SHARING_WEIGHTS = 7
"""Vectors of one output row that share a weight: with `ROWS_SHARING_LOADS` at most 28 accumulators."""


def schedule_reduction(sch: s_tir.Schedule, block: Any, target: Target) -> None:
    """Schedule a block of the function's normal form that has reduction loops; its initialiser always runs."""
    statement = sch.get(block)
    loops = sch.get_loops(block)
    variables = [v.var for v in statement.iter_vars]
    kinds = [v.iter_type for v in statement.iter_vars]
    extents = [extent_of(sch, loop) for loop in loops]
    spatial = [i for i, k in enumerate(kinds) if k == tirx.IterVar.DataPar]
    reduce = [i for i, k in enumerate(kinds) if k == tirx.IterVar.CommReduce]
    if len(variables) != len(loops) or len(spatial) + len(reduce) != len(loops) or not reduce:
        return
    accesses = accesses_of(statement)
    work = prod(extents)
    lanes = lanes_of(target, statement.writes[0].source.dtype)
    single = len(statement.writes) == 1
    column = _contiguous_output(accesses, variables, spatial, extents)
    if single and column is not None:
        _vector_over_output(sch, block, target, accesses, variables, extents, spatial, reduce, column, lanes)
    elif (
        single
        and _reduction_is_contiguous(accesses, variables, reduce[-1])
        and reduce == list(range(len(spatial), len(loops)))
    ):
        _vector_over_reduction(sch, block, target, extents, len(spatial), lanes)
    else:
        sch.reorder(*(loops[i] for i in spatial), *(loops[i] for i in reduce))
        parallel_outer(sch, [loops[i] for i in spatial], work, target)


def _contiguous_output(accesses: Accesses, variables: list[Any], spatial: list[int], extents: list[int]) -> int | None:
    """The spatial loop every access is contiguous in or independent of, and every store contiguous in."""
    coefficients = accesses.coefficients(variables)
    for index in reversed(spatial):
        if extents[index] < 4 or any(v.same_as(variables[index]) for v in accesses.loose):
            continue
        steps = [None if c is None else c[index] for c in coefficients]
        stores = [s for s, is_store in zip(steps, accesses.is_store, strict=True) if is_store]
        if all(s == 1 for s in stores) and all(s in (0, 1) for s in steps):
            return index
    return None


def _reduction_is_contiguous(accesses: Accesses, variables: list[Any], last: int) -> bool:
    steps = [None if c is None else c[last] for c in accesses.coefficients(variables)]
    return all(s in (0, 1) for s in steps) and not any(v.same_as(variables[last]) for v in accesses.loose)


def _sharing_loop(
    accesses: Accesses, variables: list[Any], extents: list[int], spatial: list[int], column: int
) -> int | None:
    """A spatial loop along which one operand of a product stays the same while another moves."""
    coefficients = [
        c for c, store in zip(accesses.coefficients(variables), accesses.is_store, strict=True) if not store
    ]
    for index in spatial:
        steps = [c[index] for c in coefficients if c is not None and c[column] in (0, 1) and any(c)]
        moving = [c for c in coefficients if c is not None and c[column] == 1]
        if index != column and extents[index] > 1 and any(steps) and any(c[index] == 0 for c in moving):
            return index
    return None


def _vector_over_output(
    sch: s_tir.Schedule,
    block: Any,
    target: Target,
    accesses: Accesses,
    variables: list[Any],
    extents: list[int],
    spatial: list[int],
    reduce: list[int],
    column: int,
    lanes: int,
) -> None:
    loops = sch.get_loops(block)
    size = extents[column]
    outer = [loops[i] for i in spatial if i != column]
    inner: list[Any] = []
    shared = _sharing_loop(accesses, variables, extents, spatial, column)
    if shared is not None:
        rows = ROWS_SHARING_LOADS if vector_bits(target) >= 512 else ROWS_SHARING_LOADS // 2
        coarse, fine = sch.split(loops[shared], [None, largest_divisor(extents[shared], rows)])
        outer[[i for i in spatial if i != column].index(shared)] = coarse
        inner.append(fine)
    power = next((n for n in (lanes, lanes // 2, lanes // 4) if n >= 4 and size % n == 0), 0)
    vector = size if size <= MAX_VECTOR_EXTENT else exact_lanes(size, lanes)
    if shared is not None and power:
        vector = power  # other widths are assembled from pieces at every load
    across = loops[column]
    if vector > 1:
        count = size // vector
        vectors = largest_divisor(count, VECTORS_SHARING_WEIGHTS if shared is not None else 4)
        coarse, fine, across = sch.split(across, [None, vectors, vector])
        outer.append(coarse)
        inner.append(fine)
    elif size > 4096:
        coarse, across = sch.split(across, [None, 1024])
        outer.append(coarse)
    terms = [loops[i] for i in reduce]
    sch.reorder(*outer, *terms, *inner, across)
    if vector > 1:
        sch.vectorize(across)
        for loop in inner:
            sch.unroll(loop)
    if not outer:
        outer = [sch.add_unit_loop(terms[0])]
    copy = sch.cache_write(block, 0, "local") if vector > 1 else None
    outer = parallel_outer(sch, outer, prod(extents), target)
    if copy is not None:
        sch.reverse_compute_at(copy, outer[-1], preserve_unit_loops=True)
        _vectorize_last(sch, copy)
    init = sch.decompose_reduction(block, terms[0])
    if vector > 1:
        _vectorize_last(sch, init)


def _vectorize_last(sch: s_tir.Schedule, block: Any) -> None:
    loop = sch.get_loops(block)[-1]
    if sch.get(loop).kind == tirx.ForKind.SERIAL and 1 < extent_of(sch, loop) <= MAX_VECTOR_EXTENT:
        sch.vectorize(loop)


def _vector_over_reduction(
    sch: s_tir.Schedule, block: Any, target: Target, extents: list[int], first: int, lanes: int
) -> None:
    """Partial results, one a lane of the last reduction axis, then their sum."""
    loops = sch.get_loops(block)
    size = extents[-1]
    vector = size if size <= lanes else exact_lanes(size, lanes)
    if vector < 4 or prod(extents[first:]) < 2 * vector:
        parallel_outer(sch, loops[:first], prod(extents), target)
        return
    _, lane = sch.split(loops[-1], [None, vector])
    partial = sch.rfactor(lane, -1)
    outer = parallel_outer(sch, sch.get_loops(block)[:first], prod(extents), target)
    if outer:
        sch.compute_at(partial, outer[-1], preserve_unit_loops=True)
        lane, *terms = sch.get_loops(partial)[len(outer) :]
    else:
        *terms, lane = sch.get_loops(partial)
    sch.reorder(*terms, lane)
    sch.vectorize(lane)
    init = sch.decompose_reduction(partial, terms[0])
    _vectorize_last(sch, init)
