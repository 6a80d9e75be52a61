"""Split the blocks of a kernel over several kernels of one function, launched one after the other.

nvcc's time grows faster than a kernel's code does: 59,000 multiply-adds take it 219 s as one kernel, 41 s as four.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import tvm_ffi
from tvm import s_tir, tirx

from tvm_sparse.schedules.storage import replace_buffer


def even_parts(count: int, parts: int) -> list[range]:
    """`count` things cut into `parts` ranges whose lengths differ by one at most."""
    bounds = [part * count // parts for part in range(parts + 1)]
    return [range(first, end) for first, end in pairwise(bounds)]


def some_blocks(func: tirx.PrimFunc, blocks: int, place: Callable[[Any], Any]) -> tirx.PrimFunc:
    """A part of a kernel: `blocks` blocks, of which block b does what block place(b) does in `func`."""

    def rewrite(loop: tirx.For) -> tirx.For:
        if loop.thread_binding is None or str(loop.thread_binding.thread_tag) != "blockIdx.x":
            return loop
        block = tirx.Var(loop.loop_var.name, loop.loop_var.ty.dtype)

        def moved(var: tirx.Var) -> Any:
            return place(block) if var.same_as(loop.loop_var) else var

        body = tvm_ffi.structural_map(loop.body, (tirx.Var, moved), order="post")
        return tirx.For(block, loop.min, blocks, loop.kind, body, loop.thread_binding, loop.annotations)

    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.For, rewrite), order="post"))


def in_turn(parts: Sequence[tirx.PrimFunc]) -> tirx.PrimFunc:
    """One function that launches the kernels of all parts, each with buffers of its own."""
    first, *others = parts
    if not others:
        return first
    blocks = [first.body.block]
    for part in others:
        for buffer in part.body.block.alloc_buffers:
            own = tirx.decl_buffer(buffer.shape, buffer.dtype, buffer.name, scope=buffer.scope())
            part = replace_buffer(part, buffer, own, lambda at: at)
        blocks.append(part.body.block)
    root = s_tir.SBlock(
        [],
        [],
        [],
        blocks[0].name_hint,
        tirx.SeqStmt([block.body for block in blocks]),
        alloc_buffers=[buffer for block in blocks for buffer in block.alloc_buffers],
        annotations=blocks[0].annotations,
    )
    return first.with_body(s_tir.SBlockRealize([], True, root))
