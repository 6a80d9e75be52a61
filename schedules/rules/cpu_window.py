"""CPU rule for pooling and depthwise convolution (NCHW): a staged plane, row blocks, vectors over output columns.

The window is said again as TE with its accumulator rounded up to whole vectors and whole row blocks; the surplus is
read from the staged, zero-filled plane and never stored, so no lane of the hot loop carries a predicate.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import tvm_ffi
from tvm import ir, s_tir, te, tirx
from tvm.s_tir.dlight import ScheduleRule
from tvm.target import Target

from tvm_sparse.schedules.cpu_target import lanes_of
from tvm_sparse.schedules.rules.base import MAX_VECTOR_EXTENT, PARALLEL_MIN_WORK, restore
from tvm_sparse.schedules.rules.window_pattern import Window, match_window

MAX_UNROLLED_TAPS = 256
"""Taps times rows unrolled in one body; beyond that the compile time and the instruction cache suffer."""

ROW_BLOCK = 7
"""Output rows that share one load of the input; 7 accumulators fit 16 registers beside the inputs."""

STAGED_PLANE_BYTES = 1 << 18
"""A larger plane is staged row block by row block, so that it stays in the second-level cache (stride > 1: always)."""


class WindowRule(ScheduleRule):
    """Pooling and depthwise convolution with stride, dilation, padding and any elementwise epilogue."""

    def apply(self, func: tirx.PrimFunc, target: Target, tunable: bool) -> s_tir.Schedule | None:
        """Return the schedule, or None when `func` is no window with at least two output columns."""
        window = match_window(func)
        if window is None or window.y.output * window.x.output < 4 or window.x.output < 2:
            return None
        lanes = _lanes(window.x.output, lanes_of(target, window.accumulator.dtype))
        unrolled = window.taps * 2 <= MAX_UNROLLED_TAPS
        rows = _row_block(window.y.output, min(ROW_BLOCK, MAX_UNROLLED_TAPS // window.taps) if unrolled else 1)
        rebuilt = restore(_rebuild(window, lanes, rows), func)
        sch = s_tir.Schedule(rebuilt)
        _schedule(sch, window, lanes, rows, unrolled)
        return sch


def _lanes(columns: int, widest: int) -> int:
    """Vector length with the fewest vectors a row, then the fewest idle lanes."""
    candidates = [n for n in (widest, widest // 2, widest // 4) if n >= 4] or [widest]
    return min(candidates, key=lambda n: (-(-columns // n), n))


def _row_block(rows: int, limit: int) -> int:
    """Rows of a block: few blocks, few surplus rows."""
    return min(range(1, max(limit, 1) + 1), key=lambda n: (-(-rows // n) * n - rows + -(-rows // n), -n))


def _staged(tensors: dict[Any, te.Tensor]) -> Callable[[tirx.Expr, dict[Any, Any]], tirx.Expr]:
    """A function that replaces buffers by tensors and variables by expressions."""

    def translate(expr: tirx.Expr, values: dict[Any, Any]) -> tirx.Expr:
        def on_var(var: tirx.Var) -> tirx.Expr:
            return values.get(var, var)

        def on_load(load: ir.TensorLoad) -> tirx.Expr:
            return tensors[load.source](*load.indices) if load.source in tensors else load

        return tvm_ffi.structural_map(expr, [(tirx.Var, on_var), (ir.TensorLoad, on_load)], order="post")

    return translate


def _shape(*extents: int) -> tuple[tirx.Expr, ...]:
    """64-bit extents, so that the indices have the type of the function's own."""
    return tuple(tirx.const(int(e), "int64") for e in extents)


def _rebuild(window: Window, lanes: int, rows: int) -> tirx.PrimFunc:
    """The window as TE: plane → (for stride > 1: its columns split by phase) → accumulator → output."""
    func, y, x = window.func, window.y, window.x
    inputs = list(func.params[:-1])
    placeholders = [te.placeholder(b.shape, b.dtype, name=b.name) for b in inputs]
    tensors = dict(zip(inputs, placeholders, strict=True))
    translate = _staged(tensors)
    dtype = window.source.source.dtype
    height, width = -(-y.output // rows) * rows, -(-x.output // lanes) * lanes
    plane_h = (height - 1) * y.stride + (y.taps - 1) * y.dilation + 1
    plane_w = width + ((x.taps - 1) * x.dilation) // x.stride
    source_shape = [int(e) for e in window.source.source.shape]
    zero = tirx.const(0, dtype)

    def staged(*index: Any) -> tirx.Expr:
        *_, h, w = index
        inside = tirx.all(h < source_shape[-2], w < source_shape[-1])
        if window.producer is None:
            return tirx.if_then_else(inside, tensors[window.source.source](*index), zero)
        iters = [v.var for v in window.producer.iter_vars]
        value = translate(window.producer.body.value, dict(zip(iters, index, strict=True)))
        return tirx.if_then_else(inside, value, zero)

    plane = te.compute(_shape(*source_shape[:-2], plane_h, plane_w * x.stride), staged, name="plane")
    phases = plane
    if x.stride > 1:
        shape = _shape(*source_shape[:-2], plane_h, x.stride, plane_w)
        phases = te.compute(shape, lambda *i: plane(*i[:-2], i[-1] * x.stride + i[-2]), name="phases")
    taps = [te.reduce_axis(_shape(0, a.taps), name=n) if a.tap is not None else None for a, n in ((y, "r"), (x, "s"))]

    def accumulate(*index: Any) -> tirx.Expr:
        values: dict[Any, Any] = dict(zip(window.spatial, index, strict=True))
        values.update({unit: tirx.const(0, "int64") for unit in window.units})
        values.update({a.tap: t.var for a, t in zip((y, x), taps, strict=True) if t is not None})
        down, right = ((0 if t is None else t.var * a.dilation) for a, t in zip((y, x), taps, strict=True))
        lead = [translate(i, values) for i in window.source.indices[:-2]]
        row, column = index[-2] * y.stride + down, index[-1] + right // x.stride
        read = phases(*lead, row, *([right % x.stride] if x.stride > 1 else []), column)
        here = tirx.Var("source", dtype)
        term = tvm_ffi.structural_map(
            window.term, (ir.TensorLoad, lambda load: here if load.same_as(window.source) else load), order="pre"
        )
        return window.reducer(translate(term, {**values, here: read}), axis=[t for t in taps if t is not None])

    accumulator = te.compute(_shape(*window.lead, height, width), accumulate, name="acc")

    def finish(*index: Any) -> tirx.Expr:
        if window.epilogue is None:
            return accumulator(*index)
        iters = [v.var for v in window.epilogue.iter_vars]
        tensors[window.accumulator] = accumulator
        return translate(window.epilogue.body.value, dict(zip(iters, index, strict=True)))

    output = te.compute(_shape(*window.lead, y.output, x.output), finish, name="out")
    return te.create_prim_func([*placeholders, output])


def _schedule(sch: s_tir.Schedule, window: Window, lanes: int, rows: int, unrolled: bool) -> None:
    acc, out, plane = (sch.get_sblock(name) for name in ("acc", "out", "plane"))
    loops = sch.get_loops(acc)
    lead, (y, x), taps = (
        loops[: len(window.lead)],
        loops[len(window.lead) : len(window.lead) + 2],
        loops[len(window.lead) + 2 :],
    )
    channel = sch.fuse(*lead)
    block, row = sch.split(y, [None, rows])
    vector, lane = sch.split(x, [None, lanes])
    sch.reorder(channel, block, vector, *taps, row, lane)
    work = prod(window.lead) * window.y.output * window.x.output * window.taps
    if work >= PARALLEL_MIN_WORK and prod(window.lead) > 1:
        sch.parallel(channel)
    sch.reverse_compute_at(out, block, preserve_unit_loops=True)
    sizes = [int(e) for e in sch.get(plane).writes[0].source.shape]
    by_rows = window.x.stride > 1 or sizes[-1] * sizes[-2] * 4 > STAGED_PLANE_BYTES
    at = block if by_rows else channel
    if window.x.stride > 1:
        phases = sch.get_sblock("phases")
        if window.producer is None:
            sch.compute_inline(plane)
        sch.compute_at(phases, at, preserve_unit_loops=True)
        *_, phase, column = sch.get_loops(phases)
        sch.reorder(column, phase)
        sch.unroll(phase)
    if window.x.stride == 1 or window.producer is not None:
        sch.compute_at(plane, at, preserve_unit_loops=True)
    sch.vectorize(lane)
    if unrolled:
        for loop in (*taps, row):
            sch.unroll(loop)
    init = sch.decompose_reduction(acc, taps[0])
    sch.unroll(sch.get_loops(init)[-2])
    column = sch.get_loops(out)[-1]
    if int(sch.get(column).extent) <= 2 * MAX_VECTOR_EXTENT:
        sch.vectorize(column)
