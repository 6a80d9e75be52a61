"""Recognise a sliding window (pooling or depthwise convolution, NCHW) in a PrimFunc."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tvm_ffi
from tvm import ir, s_tir, sym, te, tirx

from tvm_sparse.schedules.blocks import uses
from tvm_sparse.schedules.rules.base import inline_injective, inspect_raw, only_reduction

REDUCERS: dict[type, Callable[..., Any]] = {tirx.Add: te.sum, tirx.Max: te.max, tirx.Min: te.min}


@dataclass(frozen=True)
class WindowAxis:
    """One window axis: source index = position · stride + tap · dilation; `tap` is None when there is one tap."""

    output: int
    stride: int
    tap: tirx.Var | None = None
    taps: int = 1
    dilation: int = 1


@dataclass(frozen=True)
class Window:
    """A window reduction, with at most one producer (the padding) and one epilogue block."""

    func: tirx.PrimFunc
    output: tirx.Buffer
    accumulator: tirx.Buffer
    reducer: Callable[..., Any]
    lead: tuple[int, ...]
    y: WindowAxis
    x: WindowAxis
    spatial: tuple[tirx.Var, ...]
    units: tuple[tirx.Var, ...]
    term: tirx.Expr
    source: ir.TensorLoad
    producer: s_tir.SBlock | None
    epilogue: s_tir.SBlock | None

    @property
    def taps(self) -> int:
        """Terms summed for one output element."""
        return self.y.taps * self.x.taps


def match_window(func: tirx.PrimFunc) -> Window | None:
    """The window of `func`, or None: one reduction over the last two axes, one output, floating point."""
    sch = s_tir.Schedule(func)
    infos = inspect_raw(sch)
    reduction = only_reduction(infos)
    if reduction is None:
        return None
    at = infos.index(reduction)
    before, after = inline_injective(sch, infos[: at + 1])[:-1], inline_injective(sch, infos[at + 1 :])
    if len(before) > 1 or len(after) > 1:
        return None
    producer, epilogue = ((sch.get(b[0].block_rv) if b else None) for b in (before, after))
    return _read(sch.mod["main"], sch.get(reduction.block_rv), producer, epilogue)


def loads_in(expr: tirx.Expr) -> list[ir.TensorLoad]:
    """Buffer loads of an expression, outermost first."""
    found: list[ir.TensorLoad] = []
    tvm_ffi.structural_walk(expr, (ir.TensorLoad, lambda load: found.append(load)), order="pre")
    return found


def _read(
    func: tirx.PrimFunc, block: s_tir.SBlock, producer: s_tir.SBlock | None, epilogue: s_tir.SBlock | None
) -> Window | None:
    store = block.body
    if not isinstance(store, tirx.BufferStore) or type(store.value) not in REDUCERS:
        return None
    own, term = store.value.a, store.value.b
    if not isinstance(own, ir.TensorLoad) or not own.source.same_as(store.buffer):
        return None
    extents = [int(v.dom.extent) for v in block.iter_vars]
    spatial = [v.var for v in block.iter_vars if v.iter_type == tirx.IterVar.DataPar]
    sizes = [e for v, e in zip(block.iter_vars, extents, strict=True) if v.iter_type == tirx.IterVar.DataPar]
    reduce = [
        (v.var, e) for v, e in zip(block.iter_vars, extents, strict=True) if v.iter_type == tirx.IterVar.CommReduce
    ]
    if len(spatial) < 3 or len(spatial) + len(reduce) != len(extents) or not _is_identity(store.indices, spatial):
        return None
    output = func.params[-1]
    last = epilogue if epilogue is not None else block
    if not last.writes[0].source.same_as(output) or "float" not in str(output.dtype):
        return None
    sources = [load for load in loads_in(term) if uses(load, spatial[-1])]
    if len(sources) != 1 or len(sources[0].indices) != len(spatial):
        return None
    source = sources[0]
    if producer is not None and not source.source.same_as(producer.writes[0].source):
        return None
    axes = [_axis(source.indices[d], spatial[d], sizes[d], reduce) for d in (-2, -1)]
    if axes[0] is None or axes[1] is None:
        return None
    taps = [a.tap for a in axes if a is not None and a.tap is not None]
    units = [v for v, e in reduce if e == 1 and not any(v.same_as(t) for t in taps)]
    if len(taps) + len(units) != len(reduce) or (len(taps) == 2 and taps[0].same_as(taps[1])) or not taps:
        return None
    if any(uses(index, v) for index in source.indices[:-2] for v in (*spatial[-2:], *taps)):
        return None
    if epilogue is not None and not _fits(epilogue, store.buffer, sizes):
        return None
    return Window(
        func,
        output,
        store.buffer,
        REDUCERS[type(store.value)],
        tuple(sizes[:-2]),
        axes[0],
        axes[1],
        tuple(spatial),
        tuple(units),
        term,
        source,
        producer,
        epilogue,
    )


def _is_identity(indices: Any, variables: list[tirx.Var]) -> bool:
    return len(indices) == len(variables) and all(i.same_as(v) for i, v in zip(indices, variables, strict=True))


def _axis(index: tirx.Expr, var: tirx.Var, size: int, reduce: list[tuple[tirx.Var, int]]) -> WindowAxis | None:
    """Read `index` as var · stride + tap · dilation."""
    variables = [var, *(v for v, _ in reduce)]
    coefs = sym.detect_linear_equation(index, variables)
    if len(coefs) != len(variables) + 1 or not all(isinstance(c, tirx.IntImm) for c in coefs):
        return None
    stride, *steps, base = (int(c) for c in coefs)
    taps = [(v, e, step) for (v, e), step in zip(reduce, steps, strict=True) if step and e > 1]
    if stride < 1 or base != 0 or len(taps) > 1 or any(step < 1 for _, _, step in taps):
        return None
    if not taps:
        return WindowAxis(size, stride)
    return WindowAxis(size, stride, *taps[0])


def _fits(epilogue: s_tir.SBlock, accumulator: tirx.Buffer, sizes: list[int]) -> bool:
    """Whether the epilogue has the reduction's shape and reads the accumulator at its own position only."""
    variables = [v.var for v in epilogue.iter_vars]
    store = epilogue.body
    if not isinstance(store, tirx.BufferStore) or [int(v.dom.extent) for v in epilogue.iter_vars] != sizes:
        return False
    reads = [load for load in loads_in(store.value) if load.source.same_as(accumulator)]
    return _is_identity(store.indices, variables) and all(_is_identity(r.indices, variables) for r in reads)
