"""CUDA rule for reductions of few terms (local response norm): a thread an output, in one kernel.

What is computed before the reduction is computed again for every term, so that it needs no kernel and no memory.
"""

from __future__ import annotations

from math import prod

from tvm import s_tir, tirx
from tvm.s_tir.dlight import ScheduleRule
from tvm.target import Target

from tvm_sparse.schedules.rules.base import accesses_of, inline_injective, inspect

BLOCK_THREADS = 256
#: Terms of an output: beyond, threads should share one.
MOST_TERMS = 32


class ShortReduction(ScheduleRule):
    """One reduction of few terms, with cheap elementwise blocks before it and any behind."""

    def apply(self, func: tirx.PrimFunc, target: Target, tunable: bool) -> s_tir.Schedule | None:
        """Return the schedule, or None when `func` reduces more than once, over more terms, or what costs calls."""
        sch = s_tir.Schedule(func)
        infos = inspect(sch)
        reductions = [info for info in infos if not info.is_injective()]
        if len(reductions) != 1:
            return None
        total, at = reductions[0].block_rv, infos.index(reductions[0])
        block = sch.get(total)
        terms = prod(int(v.dom.extent) for v in block.iter_vars if v.iter_type == tirx.IterVar.CommReduce)
        before = [info.block_rv for info in infos[:at]]
        if terms > MOST_TERMS or len(block.writes) != 1 or any(accesses_of(sch.get(b)).calls for b in before):
            return None
        for producer in before:
            sch.compute_inline(producer)
        after = inline_injective(sch, infos[at + 1 :])
        if len(after) > 1:
            return None
        out = after[0].block_rv if after else sch.cache_write(total, 0, "local")
        element = sch.fuse(*sch.get_loops(out))
        sch.compute_at(total, element, preserve_unit_loops=True)
        sch.set_scope(total, 0, "local")
        spatial = sum(v.iter_type == tirx.IterVar.DataPar for v in block.iter_vars)
        for loop in sch.get_loops(total)[1 + spatial :]:
            sch.unroll(loop)
        grid, thread = sch.split(element, [None, BLOCK_THREADS])
        sch.bind(grid, "blockIdx.x")
        sch.bind(thread, "threadIdx.x")
        sch.decompose_reduction(total, sch.get_loops(total)[2])
        return sch
