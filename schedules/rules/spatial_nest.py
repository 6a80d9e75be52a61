"""One spatial (injective) block on a CPU: fuse what is flat in memory, parallel outside, vectors inside."""

from __future__ import annotations

from math import prod
from typing import Any

import tvm_ffi
from tvm import s_tir, tirx
from tvm.target import Target

from tvm_sparse.schedules.cpu_target import cores_of
from tvm_sparse.schedules.rules.base import (
    CALL_WORK,
    MAX_VECTOR_EXTENT,
    PARALLEL_MIN_WORK,
    Accesses,
    accesses_of,
    extent_of,
    largest_divisor,
)

TRANSPOSE_TILE = 8
"""Side of the square a transpose walks: its lines often share one cache set, and must fit the ways of it."""

MAX_REPEATS = 8
"""Copies of one loaded element that are unrolled (upsampling by this factor)."""


def flat_start(accesses: Accesses, variables: list[Any], extents: list[int], end: int | None = None) -> int:
    """First loop of the longest run of loops ending at `end` (exclusive) that every access walks like a single loop.

    Fusing such loops costs no division: each access steps by the same amount everywhere, or not at all.
    """
    end = len(variables) if end is None else end
    coefficients = accesses.coefficients(variables)

    def joins(outer: int, inner: int) -> bool:
        if any(v.same_as(variables[outer]) or v.same_as(variables[inner]) for v in accesses.loose):
            return False
        return all(c is not None and c[outer] == c[inner] * extents[inner] for c in coefficients)

    start, inner = end, None
    for index in range(end - 1, -1, -1):
        if extents[index] > 1:
            if inner is not None and not joins(index, inner):
                break
            inner = index
        start = index
    return start


def parallel_outer(sch: s_tir.Schedule, loops: list[Any], work: int, target: Target) -> list[Any]:
    """Fuse leading loops until there are several chunks a core and run them in parallel; return the loops now there."""
    if not loops or work < PARALLEL_MIN_WORK:
        return loops
    count, taken = 1, 0
    while taken < len(loops) and count < 8 * cores_of(target):
        count *= extent_of(sch, loops[taken])
        taken += 1
    if count == 1:
        return loops
    head = sch.fuse(*loops[:taken]) if taken > 1 else loops[0]
    sch.parallel(head)
    return [head, *loops[taken:]]


def schedule_spatial(sch: s_tir.Schedule, block: Any, target: Target) -> None:
    """Schedule a block of the function's normal form whose loops are all spatial."""
    loops = sch.get_loops(block)
    statement = sch.get(block)
    variables = [v.var for v in statement.iter_vars]
    extents = [extent_of(sch, loop) for loop in loops]
    if len(variables) != len(loops) or prod(extents) == 1:
        return
    accesses = accesses_of(statement)
    work = prod(extents) * (1 + CALL_WORK * accesses.calls)
    start = flat_start(accesses, variables, extents)
    last = max(i for i, e in enumerate(extents) if e > 1)
    steps = [(0 if c is None else c[last], c) for c in accesses.coefficients(variables)]
    smooth = all(c is not None and step in (0, 1) for step, c in steps)
    outer = loops[:start]
    if smooth:
        # A fused loop is never split: its divisions cancel only while its index is one variable. LLVM vectorises it.
        inner = sch.fuse(*loops[start:])
        if extent_of(sch, inner) <= MAX_VECTOR_EXTENT:
            sch.vectorize(inner)
        elif prod(extents[:start]) == 1:
            outer = [*outer, inner]
        parallel_outer(sch, outer, work, target)
        return
    outer = loops[:last]
    crossing = _crossing_loop(accesses, variables, extents, last)
    repeat = _repeats(accesses, variables[last], extents[last])
    if crossing is not None:
        across, across_in = sch.split(loops[crossing], [None, largest_divisor(extents[crossing], TRANSPOSE_TILE)])
        along, along_in = sch.split(loops[last], [None, largest_divisor(extents[last], TRANSPOSE_TILE)])
        sch.reorder(*loops[:crossing], across, *loops[crossing + 1 : last], along, across_in, along_in)
        outer = [*loops[:crossing], across, *loops[crossing + 1 : last], along]
    elif repeat > 1:
        _, copies = sch.split(loops[last], [None, repeat])
        sch.unroll(copies)
    parallel_outer(sch, outer, work, target)


def _repeats(accesses: Accesses, variable: Any, extent: int) -> int:
    """How often a load repeats an element along a loop (nearest upsampling reads x // 2), 1 if it does not."""
    factors: list[int] = []

    def on_division(division: tirx.FloorDiv) -> None:
        if division.a.same_as(variable) and isinstance(division.b, tirx.IntImm):
            factors.append(int(division.b))

    for offset in accesses.offsets:
        tvm_ffi.structural_walk(offset, (tirx.FloorDiv, on_division), order="pre")
    return factors[0] if len(set(factors)) == 1 and extent % factors[0] == 0 and factors[0] <= MAX_REPEATS else 1


def _crossing_loop(accesses: Accesses, variables: list[Any], extents: list[int], last: int) -> int | None:
    """The loop a transposing load is contiguous in, while the store is contiguous in the loop `last`."""
    for coefs, store in zip(accesses.coefficients(variables), accesses.is_store, strict=True):
        if store or coefs is None or coefs[last] in (0, 1):
            continue
        for index in range(last):
            if coefs[index] == 1 and extents[index] > 1:
                return index
    return None
