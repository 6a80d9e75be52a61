"""CPU rule for injective functions: elementwise, broadcast, concat, pad, slice, transpose, reshape, resize."""

from __future__ import annotations

from tvm import s_tir, tirx
from tvm.s_tir.dlight import ScheduleRule
from tvm.target import Target

from tvm_sparse.schedules.rules.base import inline_injective, inspect
from tvm_sparse.schedules.rules.simplify import simplify_blocks
from tvm_sparse.schedules.rules.spatial_nest import schedule_spatial


class Elementwise(ScheduleRule):
    """Inline the chain, then one parallel, vectorised nest for each block that remains."""

    def apply(self, func: tirx.PrimFunc, target: Target, tunable: bool) -> s_tir.Schedule | None:
        """Return the schedule, or None when a block reduces."""
        sch = s_tir.Schedule(simplify_blocks(func))
        infos = inspect(sch)
        if not all(info.is_injective() for info in infos):
            return None
        for info in inline_injective(sch, infos):
            schedule_spatial(sch, info.block_rv, target)
        return sch
