"""Marked loops of a copy, and statements in loops like them: what other copies are written with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.script import tirx as T

from tvm_sparse.schedules.blocks import substituted


class Nest:
    """The marked loops and the copy in them, without block variables.

    `loops` from the outermost, of which `threads` are bound to threads; where `inside`, it stores `value` at `place` of
    `target`.
    """

    def __init__(self, marked: tirx.For) -> None:
        self.loops: list[tirx.For] = []
        inner: Any = marked
        while isinstance(inner, tirx.For):
            self.loops.append(inner)
            inner = inner.body
        self.threads = [loop for loop in self.loops if loop.thread_binding is not None]
        own = [(each.var, value) for each, value in zip(inner.block.iter_vars, inner.iter_values, strict=True)]
        store = inner.block.body
        self.target = store.buffer
        self.inside = inner.predicate
        self.value = substituted(store.value, own)
        self.place = [substituted(index, own) for index in store.indices]


def integer(value: int) -> Any:
    return tirx.const(value, "int32")


def nested(
    chunks: tirx.For, chunk: Any, loops: list[tirx.For], statement: Callable[[list[tuple[Any, Any]]], Any]
) -> Any:
    """A statement in loops like these with variables of their own, a list of old and new ones; if there is a chunk."""
    new = [(loop.loop_var, tirx.Var(loop.loop_var.name, "int32")) for loop in loops]
    inner = block(tirx.IfThenElse(chunk < chunks.extent, statement(new), None))
    for loop, (_, var) in zip(reversed(loops), reversed(new), strict=True):
        inner = tirx.For(var, loop.min, loop.extent, loop.kind, inner, loop.thread_binding, {})
    return inner


def block(statement: Any) -> Any:
    """A statement as a block without variables."""
    return s_tir.SBlockRealize([], tirx.const(True, "bool"), s_tir.SBlock([], [], [], "copies", statement))


def call(instruction: str, *args: Any) -> Any:
    return block(tirx.Evaluate(T.ptx[instruction](*args)))


def barrier() -> Any:
    return block(tirx.Evaluate(T.tvm_storage_sync("shared")))


def conditional(value: Any) -> tuple[Any, Any]:
    """The test of `if_then_else(test, element, 0)` and the element; of an element alone, that it is there."""
    if isinstance(value, tvm.ir.Call):
        test, element, _ = value.args
        return test, element
    return tirx.const(True, "bool"), value


def widened(element: Any, width: int) -> Any:
    """The load of `width` neighbours."""
    if not isinstance(element, tvm.ir.TensorLoad):  # zero: no image has anything there
        return zero(str(element.ty.dtype), width)
    *outer, last = element.indices
    return tirx.BufferLoad(element.source, [*outer, ramp(last, width)])


def zero(dtype: Any, width: int) -> Any:
    """As many zeros."""
    one = tirx.const(0, dtype)
    return one if width == 1 else tirx.Broadcast(one, width)


def ramp(first: Any, width: int) -> Any:
    """The index of `width` neighbours."""
    return first if width == 1 else tirx.Ramp(first, 1, width)
