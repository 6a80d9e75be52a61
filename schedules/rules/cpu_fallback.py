"""CPU rule that always applies: inline what can be, then schedule each remaining block by itself.

It is also the rule for reductions (mean, softmax, layer norm), transposed and 3-D convolutions, which need no more.
"""

from __future__ import annotations

import logging

from tvm import s_tir, tirx
from tvm.s_tir.dlight import ScheduleRule
from tvm.target import Target

from tvm_sparse.schedules.rules.base import inline_injective, inspect
from tvm_sparse.schedules.rules.reduction_nest import schedule_reduction
from tvm_sparse.schedules.rules.spatial_nest import schedule_spatial

logger = logging.getLogger(__name__)


class Fallback(ScheduleRule):
    """One parallel, vectorised nest a block; a block no nest fits stays serial."""

    def apply(self, func: tirx.PrimFunc, target: Target, tunable: bool) -> s_tir.Schedule | None:
        """Return the schedule; raises ValueError when the function has no normal form (it then stays serial)."""
        sch = s_tir.Schedule(func)
        for info in inline_injective(sch, inspect(sch)):
            schedule = schedule_spatial if info.is_injective() else schedule_reduction
            before = sch.copy()
            try:
                schedule(sch, info.block_rv, target)
            except Exception as error:  # TVM has internal errors here too: rfactor beside a scalar block
                logger.debug("block %s stays serial: %s", info.name, error)
                sch = before
        return sch
