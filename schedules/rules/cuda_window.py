"""CUDA rule for pooling and depthwise convolution (NCHW): a thread computes some rows of one output column.

    thread = (n, c, block of rows, column):
        patch := the input of its outputs, zero or -inf beyond the edge                               (registers)
        acc[row] := reduce over the taps of patch                                                     (registers)
        out[row] := epilogue(acc[row])

Neighbouring threads have neighbouring columns, so every load and store of a warp is one run of memory. Each input row
is loaded once for all outputs of the thread that it touches: (rows·stride + r - stride)·s loads for rows·r·s terms.
"""

from __future__ import annotations

from math import prod
from typing import Any

from tvm import s_tir, tirx
from tvm.s_tir.dlight import ScheduleRule
from tvm.target import Target

from tvm_sparse.schedules.rules.base import inline_injective, inspect_raw
from tvm_sparse.schedules.rules.window_pattern import Window, match_window

#: Threads of a block; small, so that layers of few outputs still have a block for every multiprocessor.
BLOCK_THREADS = 128
#: Rows of a thread, and registers of its patch, at most.
MOST_ROWS, MOST_PATCH = 8, 96
#: Threads that hide the latency of a large GPU's memory: a thread gets more than one row only beyond.
ENOUGH_THREADS = 132 * 1024


class WindowRows(ScheduleRule):
    """Pooling and depthwise convolution with stride, dilation, padding and any elementwise epilogue."""

    def apply(self, func: tirx.PrimFunc, target: Target, tunable: bool) -> s_tir.Schedule | None:
        """Return the schedule, or None when `func` is no window or one of too many taps for registers."""
        window = match_window(func)
        if window is None or window.y.output * window.x.output < window.taps or _patch(window, 1) > MOST_PATCH:
            return None
        sch = s_tir.Schedule(func)
        infos = inspect_raw(sch)
        at = next(n for n, info in enumerate(infos) if not info.is_injective())
        before, after = inline_injective(sch, infos[: at + 1])[:-1], inline_injective(sch, infos[at + 1 :])
        total = infos[at].block_rv
        source = next(n for n, r in enumerate(sch.get(total).reads) if r.source.same_as(_source(sch, total, window)))
        patch = before[0].block_rv if before else sch.cache_read(total, source, "local")
        out = after[0].block_rv if after else sch.cache_write(total, 0, "local")
        *lead, y, x = sch.get_loops(out)
        y, row = sch.split(y, [None, _rows(window)])
        sch.reorder(*lead, y, x, row)
        column = sch.fuse(*lead, y, x)
        sch.compute_at(total, column, preserve_unit_loops=True)
        sch.compute_at(patch, column, preserve_unit_loops=True)
        for block in (total, patch):
            sch.set_scope(block, 0, "local")
            for loop in sch.get_loops(block)[1:]:
                sch.unroll(loop)
        sch.unroll(row)
        # Split after compute_at, so that the test for the last block guards all three blocks.
        block, thread = sch.split(column, [None, BLOCK_THREADS])
        sch.bind(block, "blockIdx.x")
        sch.bind(thread, "threadIdx.x")
        first_tap = sch.get_loops(total)[2 + len(lead) + 2]
        for loop in sch.get_loops(sch.decompose_reduction(total, first_tap))[2:]:
            sch.unroll(loop)
        return sch


def _source(sch: s_tir.Schedule, total: Any, window: Window) -> tirx.Buffer:
    """The buffer a window slides over, as the schedule knows it now."""
    return next(r.source for r in sch.get(total).reads if r.source.name == window.source.source.name)


def _patch(window: Window, rows: int) -> int:
    """Input elements of a thread's outputs."""
    height = (rows - 1) * window.y.stride + (window.y.taps - 1) * window.y.dilation + 1
    return height * ((window.x.taps - 1) * window.x.dilation + 1)


def _rows(window: Window) -> int:
    """Rows of a thread: as many as leave threads enough and divide the output."""
    columns = prod(window.lead) * window.x.output
    fitting = [
        rows
        for rows in range(1, MOST_ROWS + 1)
        if window.y.output % rows == 0
        and _patch(window, rows) <= MOST_PATCH
        and (rows == 1 or columns * window.y.output // rows >= ENOUGH_THREADS)
    ]
    return max(fitting)
