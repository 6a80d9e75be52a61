"""CUDA rule for injective functions (elementwise, broadcast, concat, pad): several elements a thread if there are many.

dlight gives every element a thread, in blocks of 1024: starting so many takes longer than their work.
"""

from __future__ import annotations

from math import prod
from typing import Any

import tvm_ffi
from tvm import ir, s_tir
from tvm.s_tir.dlight import ScheduleRule
from tvm.target import Target

from tvm_sparse.schedules.rules.base import Accesses, accesses_of, extent_of, inline_injective, inspect

BLOCK_THREADS = 256
#: Elements of a thread, in functions that then still have threads for every multiprocessor of a large GPU.
ELEMENTS = 4
ENOUGH_THREADS = 132 * 1024


class Elementwise(ScheduleRule):
    """Inline the chain, then one kernel for each block that remains."""

    def apply(self, func: Any, target: Target, tunable: bool) -> s_tir.Schedule | None:
        """Return the schedule, or None when a block reduces."""
        sch = s_tir.Schedule(func)
        infos = inspect(sch)
        if not all(info.is_injective() for info in infos):
            return None
        # A kernel more costs more than a function computed again.
        for info in inline_injective(sch, infos, keep_calls=False):
            _schedule(sch, info.block_rv)
        return sch


def _schedule(sch: s_tir.Schedule, block: Any) -> None:
    loops = sch.get_loops(block)
    extents = [extent_of(sch, loop) for loop in loops]
    statement = sch.get(block)
    count = prod(extents)
    several = count % ELEMENTS == 0 and count >= ELEMENTS * ENOUGH_THREADS
    smooth = several and not _chooses(statement) and _smooth(accesses_of(statement), statement, extents)
    element = sch.fuse(*loops) if loops else sch.add_unit_loop(block)
    if smooth:
        grid, thread, own = sch.split(element, [None, BLOCK_THREADS, ELEMENTS])
        sch.vectorize(own)
    elif several:
        grid, own, thread = sch.split(element, [None, ELEMENTS, BLOCK_THREADS])
        sch.reorder(grid, thread, own)
        sch.unroll(own)
    else:
        grid, thread = sch.split(element, [None, BLOCK_THREADS])
    sch.bind(grid, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")


def _chooses(statement: s_tir.SBlock) -> bool:
    """Whether a value is read under a condition, which TVM does not make a vector of."""
    found: list[bool] = []

    def on_call(call: ir.Call) -> None:
        found.append(str(getattr(call.op, "name", "")).endswith("if_then_else"))

    tvm_ffi.structural_walk(statement.body, (ir.Call, on_call), order="pre")
    return any(found)


def _smooth(accesses: Accesses, statement: s_tir.SBlock, extents: list[int]) -> bool:
    """Whether neighbours along the last axis are neighbours, or one, in every access, so that four make a vector."""
    variables = [v.var for v in statement.iter_vars]
    if extents[-1] % ELEMENTS or any(var.same_as(variables[-1]) for var in accesses.loose):
        return False
    return all(c is not None and c[-1] in (0, 1) for c in accesses.coefficients(variables))
