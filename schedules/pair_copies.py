"""Copies of images that are paired, element by element, in shared memory: through registers.

    held := chunk 0                              (global memory to registers, as wide as it lies)
    start to copy the filter of chunk 0          (cp.async)
    for chunk of channels:
        wait for the filter and for all threads
        tile := held
        held := chunk + 1, start to copy its filter
        wait for all threads
        sum(chunk)

cp.async moves 4 bytes at least, so it cannot interleave elements of 2. Whole rows are copied as they lie in memory
(plane_copies), almost without tests: what surrounds the images in the tile is zero from the start. Any other tile is
copied place by place, with a test each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.backend.cuda.op import cuda_func_call
from tvm.script import tirx as T

from tvm_sparse.compute.pair_tiling import PAIR, PairTiling
from tvm_sparse.schedules.blocks import changed_block, substituted
from tvm_sparse.schedules.copy_loops import Nest, barrier, block, call, integer, nested
from tvm_sparse.schedules.held_pairs import ELEMENT, Copies, PlaceByPlace, PlaneByPlane
from tvm_sparse.schedules.plane_copies import plane_copies
from tvm_sparse.schedules.storage import find_buffer, replace_buffer

INTERLEAVE = "interleave"
#: Bytes of an asynchronous copy that passes by the cache of a multiprocessor.
WIDEST_COPY_BYTES = 16
#: Chunks of the filter in shared memory: one is read while the other is written.
HALVES = 2


def mark_interleave(sch: s_tir.Schedule, loop: Any) -> None:
    """Mark the outermost loop of the copies that pair images, whose innermost loops are over elements and pairs."""
    sch.annotate(loop, INTERLEAVE, 1)


def copy_pairs(func: tirx.PrimFunc, tiling: PairTiling, row_blocks: int) -> tirx.PrimFunc:
    """Put the copies above in the place of the marked loops, and of those of the filter in front of them.

    Parameters
    ----------
    row_blocks : of a block of threads, whose share of the filter is staged
    """
    old = find_buffer(func, "tile_shared.dyn")
    tile = tirx.decl_buffer((tiling.words.elements, PAIR), old.dtype, old.name, scope=old.scope())
    held: list[Any] = []

    def rewrite(loop: tirx.For) -> Any:
        parts = list(loop.body.seq) if isinstance(loop.body, tirx.SeqStmt) else []
        at = [n for n, part in enumerate(parts) if isinstance(part, tirx.For) and INTERLEAVE in part.annotations]
        if not at:
            return loop
        nest = Nest(parts[at[0]])
        planes = plane_copies(tiling, math.prod(int(each.extent) for each in nest.threads))
        copies = PlaceByPlace(nest, tile, loop) if planes is None else PlaneByPlane(nest, tile, loop, planes)
        held.append(copies.held)
        filters = [Nest(part) for part in parts[: at[0]]]
        return _in_turn(loop, copies, filters, parts[at[0] + 1 :])

    body = tvm_ffi.structural_map(func.body, (tirx.For, rewrite), order="post")
    root = changed_block(body.block, alloc_buffers=[*body.block.alloc_buffers, *held])
    func = func.with_body(s_tir.SBlockRealize(body.iter_values, body.predicate, root))
    staged = {
        "rows": ((row_blocks,), lambda at: [at[1] % row_blocks]),
        "values": (None, lambda at: at[2:]),
        "offsets": (None, lambda at: at[2:]),
    }
    for name, (shape, inside) in staged.items():
        func = _halved(func, f"{name}_shared.dyn", shape, inside)
    return replace_buffer(func, old, tile, lambda at: at[5:])


def _halved(
    func: tirx.PrimFunc, name: str, shape: tuple[int, ...] | None, inside: Callable[[Sequence[Any]], Sequence[Any]]
) -> tirx.PrimFunc:
    """Keep two chunks of a part of the filter in turn, of that only what this block of threads has."""
    old = find_buffer(func, name)
    new = tirx.decl_buffer((HALVES, *(shape or old.shape[2:])), old.dtype, old.name, scope=old.scope())
    return replace_buffer(func, old, new, lambda at: [at[0] % HALVES, *inside(at)])


def _in_turn(loop: tirx.For, copies: Copies, filters: list[Nest], work: list[Any]) -> Any:
    """The loop over chunks and what is in front of it."""

    def filter_of(chunk: Any) -> list[Any]:
        return [_asynchronous(nest, loop, chunk) for nest in filters] + [call("cp.async.commit_group")]

    first, following = integer(0), loop.loop_var + 1
    before = [_touched(filters, copies.tile), copies.loads(first), *filter_of(first), *copies.cleared()]
    wait = [call("cp.async.wait_group", 0), barrier()]
    ahead = [copies.loads(following), *filter_of(following)]
    inside = [*wait, copies.stores(loop.loop_var), *ahead, barrier(), *work]
    return tirx.SeqStmt([*before, tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, tirx.SeqStmt(inside))])


def _touched(filters: list[Nest], tile: Any) -> Any:
    """A statement that looks at every buffer, and does nothing.

    TVM 0.27 sees no use of a buffer in the copies to it: without this it would give two of them the same memory, or one
    of few bytes none.
    """
    targets = [nest.target for nest in filters]
    looks = [tirx.BufferLoad(each, [half, *[0] * (len(each.shape) - 1)]) for each in targets for half in range(HALVES)]
    looks.append(tirx.BufferLoad(tile, [0, 0]))
    kinds = {"int32": "int", **ELEMENT}
    takes = ", ".join(kinds[str(look.source.dtype)] for look in looks)
    source = f"\n__forceinline__ __device__ void pair_buffers({takes}) {{\n}}\n"
    return block(tirx.Evaluate(cuda_func_call("pair_buffers", *looks, source_code=source, return_type="void")))


def _asynchronous(nest: Nest, chunks: tirx.For, chunk: Any) -> Any:
    """A chunk's copies of the filter by cp.async."""
    *around, elements = nest.loops
    size = int(elements.extent) * tvm.DataType(str(nest.target.dtype)).itemsize

    def copy(new: list[tuple[Any, Any]]) -> Any:
        values = [*new, (chunks.loop_var, chunk), (elements.loop_var, integer(0))]
        target = tirx.BufferLoad(nest.target, [substituted(index, values) for index in nest.place])
        cached = "cg" if size == WIDEST_COPY_BYTES else "ca"
        call = T.ptx[f"cp.async.{cached}.shared.global"](
            T.address_of(target), T.address_of(substituted(nest.value, values)), size
        )
        return tirx.IfThenElse(substituted(nest.inside, values), tirx.Evaluate(call), None)

    return nested(chunks, chunk, around, copy)
