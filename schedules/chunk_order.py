"""Let the blocks of a multiprocessor work on different chunks, so that they fetch different code at the same time.

Straight-line code that is not in the instruction cache comes from L2 at one or two bytes a clock on an H200; blocks in
step wait for the same bytes.
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import s_tir, tirx

ROTATE = "rotate_chunks"


def mark_rotated(sch: s_tir.Schedule, loop: Any) -> None:
    """Mark the loop over chunks, whose order does not matter, below a loop bound to blockIdx.x."""
    sch.annotate(loop, ROTATE, 1)


def rotate_chunks(func: tirx.PrimFunc, every: int) -> tirx.PrimFunc:
    """Start the marked loop one chunk later after every so many blocks, and end it with the chunks left out."""
    blocks: list[Any] = []

    def note(loop: tirx.For) -> None:
        if loop.thread_binding is not None and str(loop.thread_binding.thread_tag) == "blockIdx.x":
            blocks.append(loop.loop_var)

    tvm_ffi.structural_walk(func.body, (tirx.For, note), order="pre")
    (block,) = blocks

    def rewrite(loop: tirx.For) -> tirx.For:
        if ROTATE not in loop.annotations:
            return loop
        rotated = tirx.floormod(loop.loop_var + tirx.floordiv(block, every), loop.extent)

        def later(var: tirx.Var) -> Any:
            return rotated if var.same_as(loop.loop_var) else var

        body = tvm_ffi.structural_map(loop.body, (tirx.Var, later), order="post")
        left = {key: value for key, value in loop.annotations.items() if key != ROTATE}
        return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body, loop.thread_binding, left)

    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.For, rewrite), order="post"))
