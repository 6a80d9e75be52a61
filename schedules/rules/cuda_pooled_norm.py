"""CUDA rule for a max-pool behind a local response norm, in one kernel: a thread computes some channels of a pixel.

    thread = (n, block of channels, pixel of the pool):
        for tap of the window:
            squares := x² of these channels and those around them, at this tap                       (registers)
            norm := x / (bias + alpha · Σ squares) ** beta                                           (registers)
            acc[channel] := max(acc[channel], norm[channel])                                         (registers)

Neighbouring threads have neighbouring pixels. A normalised element is computed once for every window it is in.
"""

from __future__ import annotations

from math import prod
from typing import Any

from tvm import s_tir, tirx
from tvm.s_tir.dlight import ScheduleRule
from tvm.target import Target

from tvm_sparse.schedules.rules.base import extent_of, inspect_raw, whole_block
from tvm_sparse.schedules.rules.cuda_window import ENOUGH_THREADS

#: Threads of a block, channels of a thread, terms of a norm and of a pool, at most.
BLOCK_THREADS, MOST_CHANNELS, MOST_TERMS = 128, 8, 32


class PooledNorm(ScheduleRule):
    """What network/response_norm.py makes: squares, their sum, the norm, the pool."""

    def apply(self, func: tirx.PrimFunc, target: Target, tunable: bool) -> s_tir.Schedule | None:
        """Return the schedule, or None when `func` is no chain of these four."""
        sch = s_tir.Schedule(func)
        infos = inspect_raw(sch)
        if [info.is_injective() for info in infos] != [True, False, True, False]:
            return None
        squares, total, norm, pool = (info.block_rv for info in infos)
        taps = [_terms(sch.get(block)) for block in (total, pool)]
        loops = sch.get_loops(pool)
        if max(taps) > MOST_TERMS or len(loops) != 6 or not isinstance(sch.get(pool).body.value, tirx.Max):
            return None
        stored = sch.cache_write(pool, 0, "local")
        n, c, p, q = sch.get_loops(stored)
        c, own = sch.split(c, [None, _channels([extent_of(sch, loop) for loop in (n, c, p, q)])])
        sch.reorder(n, c, p, q, own)
        pixel = sch.fuse(n, c, p, q)
        sch.compute_at(pool, pixel, preserve_unit_loops=True)
        *_, channel, _, _, r, s = sch.get_loops(pool)
        sch.reorder(r, s, channel)
        for block in (norm, total, squares):
            sch.compute_at(block, s, preserve_unit_loops=True)
            sch.set_scope(block, 0, "local")
        for block in (pool, norm, total, squares, stored):
            for loop in sch.get_loops(block)[1:]:
                if sch.get(loop).kind == tirx.ForKind.SERIAL:
                    sch.unroll(loop)
        # Split last, so that a test for the last block guards all of it.
        grid, thread = sch.split(pixel, [None, whole_block(extent_of(sch, pixel), BLOCK_THREADS)])
        sch.bind(grid, "blockIdx.x")
        sch.bind(thread, "threadIdx.x")
        for loop in sch.get_loops(sch.decompose_reduction(pool, r))[2:]:
            sch.unroll(loop)
        tap = sch.get_loops(total)[-1]
        for loop in sch.get_loops(sch.decompose_reduction(total, tap))[4:]:
            if sch.get(loop).kind == tirx.ForKind.SERIAL:
                sch.unroll(loop)
        return sch


def _terms(block: s_tir.SBlock) -> int:
    return prod(int(v.dom.extent) for v in block.iter_vars if v.iter_type == tirx.IterVar.CommReduce)


def _channels(extents: list[Any]) -> int:
    """Channels of a thread: as many as divide them and leave threads enough."""
    fitting = [n for n in range(1, MOST_CHANNELS + 1) if extents[1] % n == 0 and prod(extents) // n >= ENOUGH_THREADS]
    return max(fitting, default=1)
