"""CUDA rule for reductions of few terms (local response norm), in one kernel: a thread computes one output or some.

What is computed before the reduction is computed again for every term, so that it needs no kernel and no memory. A
reduction that slides along an axis shares terms between neighbours there: a thread with several of them keeps what all
of them need in registers.
"""

from __future__ import annotations

from math import prod
from typing import Any

from tvm import ir, s_tir, tirx
from tvm.s_tir.dlight import ScheduleRule
from tvm.target import Target

from tvm_sparse.schedules.blocks import uses
from tvm_sparse.schedules.rules.base import (
    accesses_of,
    extent_of,
    inline_injective,
    inspect,
    only_reduction,
    whole_block,
)
from tvm_sparse.schedules.rules.cuda_window import ENOUGH_THREADS

BLOCK_THREADS = 256
#: Terms of an output: beyond, threads should share one.
MOST_TERMS = 32
#: Outputs of a thread, at most.
MOST_OUTPUTS = 8


class ShortReduction(ScheduleRule):
    """One reduction of few terms, with cheap elementwise blocks before it and any behind."""

    def apply(self, func: tirx.PrimFunc, target: Target, tunable: bool) -> s_tir.Schedule | None:
        """Return the schedule, or None when `func` reduces more than once, over more terms, or what costs calls."""
        sch = s_tir.Schedule(func)
        infos = inspect(sch)
        reduction = only_reduction(infos)
        if reduction is None:
            return None
        at, total = infos.index(reduction), reduction.block_rv
        block = sch.get(total)
        terms = prod(int(v.dom.extent) for v in block.iter_vars if v.iter_type == tirx.IterVar.CommReduce)
        before = [info.block_rv for info in infos[:at]]
        if terms > MOST_TERMS or len(block.writes) != 1 or any(accesses_of(sch.get(b)).calls for b in before):
            return None
        slide = _slide(block) if len(before) == 1 else None
        for producer in before if slide is None else []:
            sch.compute_inline(producer)
        after = inline_injective(sch, infos[at + 1 :])
        if len(after) > 1:
            return None
        out = after[0].block_rv if after else sch.cache_write(total, 0, "local")
        loops, own = sch.get_loops(out), []
        if slide is not None:
            loops[slide], *own = sch.split(loops[slide], [None, _outputs(sch, loops, slide)])
            sch.reorder(*loops, *own)
        element = sch.fuse(*loops)
        for producer in (total, *(before if slide is not None else [])):
            sch.compute_at(producer, element, preserve_unit_loops=True)
            sch.set_scope(producer, 0, "local")
            for loop in sch.get_loops(producer)[1:]:
                sch.unroll(loop)
        for loop in own:
            sch.unroll(loop)
        grid, thread = sch.split(element, [None, whole_block(extent_of(sch, element), BLOCK_THREADS)])
        sch.bind(grid, "blockIdx.x")
        sch.bind(thread, "threadIdx.x")
        for loop in sch.get_loops(sch.decompose_reduction(total, sch.get_loops(total)[2]))[2:]:
            sch.unroll(loop)
        return sch


def _slide(block: s_tir.SBlock) -> int | None:
    """Which spatial variable the reduced one is added to in the one load of a reduction; None if there is no such."""
    spatial = [v.var for v in block.iter_vars if v.iter_type == tirx.IterVar.DataPar]
    reduced = [v.var for v in block.iter_vars if v.iter_type == tirx.IterVar.CommReduce]
    term = getattr(getattr(block.body, "value", None), "b", None)
    if len(reduced) != 1 or not isinstance(term, ir.TensorLoad):
        return None
    for index in term.indices:
        found = [n for n, var in enumerate(spatial) if uses(index, var)]
        if uses(index, reduced[0]):
            return found[0] if len(found) == 1 else None
    return None


def _outputs(sch: s_tir.Schedule, loops: list[Any], slide: int) -> int:
    """Outputs of a thread along the axis of loop `slide`: as many as divide it and leave threads enough."""
    extents = [extent_of(sch, loop) for loop in loops]
    fitting = [
        n for n in range(1, MOST_OUTPUTS + 1) if extents[slide] % n == 0 and prod(extents) // n >= ENOUGH_THREADS
    ]
    return max(fitting, default=1)
