"""Where a scheduled function keeps intermediate results: parts of buffers that one thread or block owns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx

from tvm_sparse.schedules.blocks import changed_block


def find_buffer(func: tirx.PrimFunc, name: str) -> Any:
    """The buffer of this name that a block of `func` allocates."""
    found: list[Any] = []
    tvm_ffi.structural_walk(
        func.body,
        (s_tir.SBlock, lambda block: found.extend(b for b in block.alloc_buffers if b.name == name)),
        order="pre",
    )
    (buffer,) = found
    return buffer


def replace_buffer(
    func: tirx.PrimFunc, old: Any, new: Any, place: Callable[[Sequence[Any]], Sequence[Any]]
) -> tirx.PrimFunc:
    """Keep in `new` at place(indices) what `func` keeps in `old` at indices."""

    def load(node: tvm.ir.TensorLoad) -> Any:
        return tirx.BufferLoad(new, place(list(node.indices))) if node.source.same_as(old) else node

    def store(node: tirx.BufferStore) -> Any:
        return tirx.BufferStore(new, node.value, place(list(node.indices))) if node.buffer.same_as(old) else node

    def block(node: s_tir.SBlock) -> s_tir.SBlock:
        return changed_block(
            node,
            reads=[whole(new) if region.source.same_as(old) else region for region in node.reads],
            writes=[whole(new) if region.source.same_as(old) else region for region in node.writes],
            alloc_buffers=[new if buffer.same_as(old) else buffer for buffer in node.alloc_buffers],
        )

    rewrites = [(tvm.ir.TensorLoad, load), (tirx.BufferStore, store), (s_tir.SBlock, block)]
    return func.with_body(tvm_ffi.structural_map(func.body, rewrites, order="post"))


def whole(buffer: Any) -> Any:
    """The region of all of a buffer."""
    return tirx.BufferRegion(buffer, [tvm.ir.Range(0, extent) for extent in buffer.shape])


def keep_resident(func: tirx.PrimFunc, blocks: int) -> tirx.PrimFunc:
    """Give a thread the registers that leave room for this many blocks a multiprocessor; 0 leaves them to ptxas."""
    if not blocks:
        return func

    def rewrite(loop: tirx.For) -> tirx.For:
        if loop.thread_binding is None or not str(loop.thread_binding.thread_tag).startswith("blockIdx"):
            return loop
        key = "tirx.launch_bounds_min_blocks_per_sm"
        body = tirx.AttrStmt(tirx.const(0, "int32"), key, tirx.const(blocks, "int32"), loop.body)
        return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body, loop.thread_binding, loop.annotations)

    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.For, rewrite), order="post"))
