"""CUDA rule for reductions of short rows that lie contiguous in memory (global pooling): a warp a row, by shuffles."""

from __future__ import annotations

from math import prod

from tvm import s_tir, tirx
from tvm.s_tir.dlight import ScheduleRule
from tvm.target import Target

from tvm_sparse.schedules.rules.base import accesses_of, inline_injective, inspect, only_reduction

WARP = 32
#: Warps of a block, each on its own row.
BLOCK_WARPS = 4
#: Longer rows deserve more than a warp.
LONGEST_ROW = 1024


class RowReduction(ScheduleRule):
    """One reduction of contiguous rows, with elementwise blocks before and behind it."""

    def apply(self, func: tirx.PrimFunc, target: Target, tunable: bool) -> s_tir.Schedule | None:
        """Return the schedule, or None when `func` reduces something else than short contiguous rows."""
        sch = s_tir.Schedule(func)
        infos = inspect(sch)
        reduction = only_reduction(infos)
        if reduction is None:
            return None
        at, total = infos.index(reduction), reduction.block_rv
        for info in infos[:at]:
            sch.compute_inline(info.block_rv)
        after = inline_injective(sch, infos[at + 1 :])
        block = sch.get(total)
        extents = [int(v.dom.extent) for v in block.iter_vars]
        spatial = [n for n, v in enumerate(block.iter_vars) if v.iter_type == tirx.IterVar.DataPar]
        if len(after) > 1 or len(block.writes) != 1 or spatial != list(range(len(spatial))) or not spatial:
            return None
        length = prod(extents[len(spatial) :])
        if not WARP // 2 < length <= LONGEST_ROW or not _contiguous(block, extents, len(spatial)):
            return None
        loops = sch.get_loops(total)
        row, term = sch.fuse(*loops[: len(spatial)]), sch.fuse(*loops[len(spatial) :])
        grid, warp = sch.split(row, [None, BLOCK_WARPS])
        _, lane = sch.split(term, [None, WARP])
        sch.bind(grid, "blockIdx.x")
        sch.bind(warp, "threadIdx.y")
        sch.bind(lane, "threadIdx.x")
        if after:
            sch.set_scope(total, 0, "local")
            sch.reverse_compute_at(after[0].block_rv, warp, preserve_unit_loops=True)
        return sch


def _contiguous(block: s_tir.SBlock, extents: list[int], spatial: int) -> bool:
    """Whether some load walks the reduced variables like one loop of step 1, and no load walks them otherwise."""
    accesses = accesses_of(block)
    steps = [prod(extents[n + 1 :]) for n in range(spatial, len(extents))]
    found = [
        c[spatial:] if c is not None else None
        for c, store in zip(accesses.coefficients([v.var for v in block.iter_vars]), accesses.is_store, strict=True)
        if not store
    ]
    walking = [c for c in found if c is None or any(c)]
    return bool(walking) and all(c == steps for c in walking)
