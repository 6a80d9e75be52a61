"""Sums of a warp kept in the registers of its own threads."""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx

from tvm_sparse.schedules.blocks import changed_block
from tvm_sparse.schedules.storage import find_buffer


def keep_own_lane(func: tirx.PrimFunc, buffer: str, dim: int = -1) -> tirx.PrimFunc:
    """Drop dimension `dim` (from the end), the lanes of a warp, from a thread-local buffer.

    Every access is to the own lane. The loops over lanes of its producer and its consumer are bound to the same
    threads, each on its own, which hides from TVM 0.27 that a thread needs one lane only: it would give each thread all
    of them, in slow memory.
    """
    whole = find_buffer(func, buffer)
    own = tirx.decl_buffer(_with(whole.shape, dim, 1), whole.dtype, whole.name, scope=whole.scope())

    def load(node: tvm.ir.TensorLoad) -> Any:
        return tirx.BufferLoad(own, _with(node.indices, dim, 0)) if node.source.same_as(whole) else node

    def store(node: tirx.BufferStore) -> Any:
        return tirx.BufferStore(own, node.value, _with(node.indices, dim, 0)) if node.buffer.same_as(whole) else node

    def region(node: Any) -> Any:
        if not node.source.same_as(whole):
            return node
        return tirx.BufferRegion(own, _with(node.region, dim, tvm.ir.Range(0, 1)))

    def block(node: s_tir.SBlock) -> s_tir.SBlock:
        return changed_block(
            node,
            reads=[region(read) for read in node.reads],
            writes=[region(write) for write in node.writes],
            alloc_buffers=[own if b.same_as(whole) else b for b in node.alloc_buffers],
        )

    rewrites = [(tvm.ir.TensorLoad, load), (tirx.BufferStore, store), (s_tir.SBlock, block)]
    return func.with_body(tvm_ffi.structural_map(func.body, rewrites, order="post"))


def _with(values: Any, place: int, value: Any) -> list[Any]:
    changed = list(values)
    changed[place] = value
    return changed
