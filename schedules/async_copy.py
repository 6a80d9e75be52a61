"""Copies into shared memory that run ahead of the code that reads them, by cp.async (sm_80 and later).

    for step in range(chunks + 1):
        if step < chunks: start to copy chunk `step`
        if step > 0: wait for the chunk before, and work on it

Or, with a single buffer, of the chunk that is worked on next: other blocks of the multiprocessor work meanwhile.

TVM's own software pipeline gives plain copies, and its cp.async pass refuses predicated ones (TVM 0.27).
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.script import tirx as T

from tvm_sparse.tvm_support.fresh_places import places_from_here_on
from tvm_sparse.tvm_support.statements import in_sequence

COPY_AHEAD, COPY_AT_ONCE, COPY_BUFFERS_AHEAD = "copy_ahead", "copy_at_once", "copy_buffers_ahead"
COPY_BYTES = 4


def mark_copy_ahead(sch: s_tir.Schedule, loop: Any) -> None:
    """Mark the loop over chunks whose body first copies a chunk to shared memory, then works on it."""
    sch.annotate(loop, COPY_AHEAD, 1)


def mark_copy_at_once(sch: s_tir.Schedule, loop: Any) -> None:
    """Mark a loop over chunks as `mark_copy_ahead` does, for `copy_at_once`."""
    sch.annotate(loop, COPY_AT_ONCE, 1)


def copy_at_once(func: tirx.PrimFunc, buffer: Any) -> tirx.PrimFunc:
    """In the loop that was marked, copy all of a chunk to `buffer`, whose elements have 4 bytes, and then wait."""

    def store(node: tirx.BufferStore) -> Any:
        return _start_copy(node) if node.buffer.same_as(buffer) else node

    def rewrite(loop: tirx.For) -> Any:
        if COPY_AT_ONCE not in loop.annotations:
            return loop
        *copies, work = (
            tvm_ffi.structural_map(each, (tirx.BufferStore, store), order="post") for each in loop.body.seq
        )
        waiting = [tirx.Evaluate(T.ptx["cp.async.commit_group"]()), tirx.Evaluate(T.ptx["cp.async.wait_group"](0))]
        body = tirx.SeqStmt([_barrier(), *copies, *waiting, _barrier(), work])
        return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body, None, {})

    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.For, rewrite), order="post"))


def copy_ahead(func: tirx.PrimFunc, buffer: Any, fresh_places: bool) -> tirx.PrimFunc:
    """Copy the chunk after the one that is being worked on, in the loop that was marked.

    Parameters
    ----------
    buffer : what is copied to, with room for two chunks that alternate; elements of 4 bytes
    fresh_places : work out in every step where the copies go, instead of keeping that in registers
    """

    def rewrite(loop: tirx.For) -> Any:
        return _pipelined(loop, buffer, fresh_places) if COPY_AHEAD in loop.annotations else loop

    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.For, rewrite), order="post"))


def _pipelined(loop: tirx.For, buffer: Any, fresh_places: bool) -> Any:
    copy, work = list(loop.body.seq)

    def store(node: tirx.BufferStore) -> Any:
        return _start_copy(node) if node.buffer.same_as(buffer) else node

    copy = tvm_ffi.structural_map(copy, (tirx.BufferStore, store), order="post")
    return _a_step_ahead(loop, in_sequence([places_from_here_on(), copy]) if fresh_places else copy, work)


def _a_step_ahead(loop: tirx.For, copy: Any, work: Any) -> Any:
    """A loop over chunks that starts the copy of one and then works on the one before."""

    def before(var: tirx.Var) -> Any:
        return loop.loop_var - 1 if var.same_as(loop.loop_var) else var

    work = tvm_ffi.structural_map(work, (tirx.Var, before), order="post")
    steps = [
        tirx.IfThenElse(loop.loop_var < loop.extent, copy, None),
        tirx.Evaluate(T.ptx["cp.async.commit_group"]()),
        tirx.IfThenElse(
            loop.loop_var > 0,
            tirx.SeqStmt([tirx.Evaluate(T.ptx["cp.async.wait_group"](1)), _barrier(), work, _barrier()]),
            None,
        ),
    ]
    return tirx.For(loop.loop_var, loop.min, loop.extent + 1, loop.kind, tirx.SeqStmt(steps), None, {})


def mark_copy_buffers_ahead(sch: s_tir.Schedule, loop: Any) -> None:
    """Mark the loop over chunks whose body copies to several buffers, then works, for `copy_buffers_ahead`."""
    sch.annotate(loop, COPY_BUFFERS_AHEAD, 1)


def copy_buffers_ahead(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """In the loop that was marked, copy for the chunk after the one that is worked on.

    The buffers have room for two chunks that alternate. Copies have no test in their value: see copy_tests. What works
    on a chunk is there once, unlike in TVM's software pipeline, which repeats it behind the loop for the last chunk.
    """

    def rewrite(loop: tirx.For) -> Any:
        if COPY_BUFFERS_AHEAD not in loop.annotations:
            return loop
        *copies, work = loop.body.seq
        # What TVM's passes take for copies that may be asynchronous.
        copy = tirx.AttrStmt(tirx.const(0, "int32"), "async_scope", tirx.const(1, "int32"), in_sequence(copies))
        return _a_step_ahead(loop, copy, work)

    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.For, rewrite), order="post"))


def _start_copy(store: tirx.BufferStore) -> Any:
    """An element, or zeros where the condition of its load fails."""
    load, size = store.value, tirx.const(COPY_BYTES, "uint32")
    if isinstance(load, tvm.ir.Call):
        condition, load, _ = load.args
        size = tirx.Select(condition, size, tirx.const(0, "uint32"))
    (place,) = store.buffer.offset_of(list(store.indices))
    # T.address_of would hide from TVM 0.27 that something is written: another buffer could lie at the same place.
    target = store.buffer.access_ptr("w", offset=place)
    instruction = T.ptx["cp.async.ca.shared.global"]
    return tirx.Evaluate(instruction(target, T.address_of(load), COPY_BYTES, size))


def _barrier() -> Any:
    return tirx.Evaluate(T.tvm_storage_sync("shared"))
