"""What TVM 0.27 has no instruction for on pairs of 16-bit elements: put in after scheduling, as functions of CUDA.

A sum of products of pairs takes one load of a word for both, and images are paired in registers. TVM would print
vectors of such elements one by one, and with stale operands where a register is both read and written.
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.backend.cuda.op import cuda_func_call
from tvm.script import tirx as T

from tvm_sparse.compute.pair_tiling import PAIR
from tvm_sparse.schedules.blocks import changed_block

PAIR_SUM, INTERLEAVE = "pair_sum", "interleave"
#: Words of the longest vector that TVM can put together of 16-bit elements.
WORDS_AT_ONCE = 2

#: How CUDA calls an element and a pair of them.
ELEMENT = {"float16": "half", "bfloat16": "nv_bfloat16"}
VECTOR = {"float16": "half2", "bfloat16": "nv_bfloat162"}

SUM_IN_PAIRS = """
__forceinline__ __device__ void NAME(half* sums, half2 pair, half value) {
  half2* both = (half2*)sums;
  *both = __hfma2(__half2half2(value), pair, *both);
}
"""
SUM_IN_FLOAT32 = """
__forceinline__ __device__ void NAME(float* sums, VECTOR pair, ELEMENT value) {
  sums[0] += (float)value * (float)pair.x;
  sums[1] += (float)value * (float)pair.y;
}
"""


def mark_pair_sum(sch: s_tir.Schedule, loop: Any) -> None:
    """Mark the innermost loop, over a pair, around `sum[..] = sum[..] + value * tile[..]`, for `use_pairs`."""
    sch.annotate(loop, PAIR_SUM, 1)


def mark_interleave(sch: s_tir.Schedule, loop: Any) -> None:
    """Mark the outermost loop of the copies that pair images, whose innermost loops are over elements and pairs."""
    sch.annotate(loop, INTERLEAVE, 1)


def use_pairs(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Put what works on pairs in the place of the marked loops.

    A loop that pairs images becomes two statements, loads and stores.
    """
    held: list[Any] = []

    def rewrite(loop: tirx.For) -> Any:
        if PAIR_SUM in loop.annotations:
            return _on_pair(loop)
        return _pair_up(loop, held) if INTERLEAVE in loop.annotations else loop

    def flat(sequence: tirx.SeqStmt) -> Any:
        parts = [part.seq if isinstance(part, tirx.SeqStmt) else [part] for part in sequence.seq]
        return tirx.SeqStmt([statement for part in parts for statement in part])

    body = tvm_ffi.structural_map(func.body, [(tirx.For, rewrite), (tirx.SeqStmt, flat)], order="post")
    if not held:
        return func.with_body(body)
    root = changed_block(body.block, alloc_buffers=[*body.block.alloc_buffers, *held])
    return func.with_body(s_tir.SBlockRealize(body.iter_values, body.predicate, root))


def _at_first(realize: s_tir.SBlockRealize, loop_vars: list[Any], **changes: Any) -> s_tir.SBlockRealize:
    """A block, changed, in the first step of some loops."""

    def first(var: tirx.Var) -> Any:
        return tirx.const(0, "int32") if any(var.same_as(own) for own in loop_vars) else var

    return s_tir.SBlockRealize(
        [tvm_ffi.structural_map(value, (tirx.Var, first), order="post") for value in realize.iter_values],
        tvm_ffi.structural_map(realize.predicate, (tirx.Var, first), order="post"),
        changed_block(realize.block, **changes),
    )


def _pair_up(loop: tirx.For, held: list[Any]) -> tirx.SeqStmt:
    """`tile[.., word, pair] = value(word, pair)` in two: loads to registers, image by image, and stores of words.

    So loads may run ahead of the stores, and are as wide as those of a single image.
    """
    nest: list[tirx.For] = []
    inner: Any = loop
    while isinstance(inner, tirx.For):
        nest.append(inner)
        inner = inner.body
    *around, elements, pair = nest
    width, block = int(elements.extent), inner.block
    tile = block.body.buffer
    *place, word, of_pair = block.body.indices

    own = [each for each in around if each.thread_binding is None]
    taken = tirx.decl_buffer((*(each.extent for each in own), PAIR, width), tile.dtype, "held", scope="local")
    held.append(taken)
    here = [each.loop_var for each in own]
    region = [tvm.ir.Range.from_min_extent(var, 1) for var in here]
    region += [tvm.ir.Range(0, PAIR), tvm.ir.Range(0, width)]

    loads, stores = [], []
    for image in range(PAIR):
        value = _copied(_substituted(block.body.value, {of_pair: image}), width)
        loads.append(tirx.BufferStore(taken, value, [*here, image, _run(0, width)]))
    words = min(width, WORDS_AT_ONCE)
    for first in range(0, width, words):
        turns = [
            tirx.BufferLoad(taken, [*here, image, first + element]) for element in range(words) for image in range(PAIR)
        ]
        together = tirx.Shuffle(turns, list(range(len(turns))))
        stores.append(tirx.BufferStore(tile, together, [*place, word + first, _run(0, PAIR * words)]))

    *tile_region, _, _ = block.writes[0].region
    to_tile = [*tile_region, tvm.ir.Range.from_min_extent(word, width), tvm.ir.Range(0, PAIR)]
    inner_vars = [elements.loop_var, pair.loop_var]
    load = _at_first(
        inner,
        inner_vars,
        name_hint="held",
        reads=[_whole(read.source) for read in block.reads],
        writes=[tirx.BufferRegion(taken, region)],
        body=tirx.SeqStmt(loads),
    )
    store = _at_first(
        inner,
        inner_vars,
        reads=[tirx.BufferRegion(taken, region)],
        writes=[tirx.BufferRegion(tile, to_tile)],
        body=stores[0] if len(stores) == 1 else tirx.SeqStmt(stores),
    )
    return tirx.SeqStmt([_renamed(_nested(around, load)), _nested(around, store)])


def _copied(value: Any, width: int) -> Any:
    """The value of a copy of `width` elements, from that of its first."""
    if isinstance(value, tvm.ir.Call):
        inside, element, zero = value.args
        return tirx.if_then_else(inside, _copied(element, width), _copied(zero, width))
    if not isinstance(value, tvm.ir.TensorLoad):  # zero: no image has anything there
        return value if width == 1 else tirx.Broadcast(value, width)
    *outer, last = value.indices
    return tirx.BufferLoad(value.source, [*outer, _run(last, width)])


def _run(first: Any, width: int) -> Any:
    return first if width == 1 else tirx.Ramp(first, 1, width)


def _substituted(value: Any, by: dict[Any, int]) -> Any:
    def put(var: tirx.Var) -> Any:
        return next((tirx.const(number, "int32") for old, number in by.items() if var.same_as(old)), var)

    return tvm_ffi.structural_map(value, (tirx.Var, put), order="post")


def _whole(buffer: Any) -> Any:
    return tirx.BufferRegion(buffer, [tvm.ir.Range(0, extent) for extent in buffer.shape])


def _renamed(nest: Any) -> Any:
    """The same nest with variables of its own; s_tir.renew_defs would give it other buffers, too."""
    names: list[tuple[Any, Any]] = []

    def new(var: tirx.Var) -> Any:
        return next((own for old, own in names if var.same_as(old)), var)

    def rename(node: Any) -> Any:
        return tvm_ffi.structural_map(node, (tirx.Var, new), order="post")

    def ranges(regions: Any) -> list[Any]:
        return [tirx.BufferRegion(region.source, [rename(each) for each in region.region]) for region in regions]

    def walk(node: Any) -> Any:
        if isinstance(node, tirx.For):
            own = tirx.Var(node.loop_var.name, "int32")
            names.append((node.loop_var, own))
            return tirx.For(own, node.min, node.extent, node.kind, walk(node.body), node.thread_binding, {})
        block, values, predicate = node.block, [rename(value) for value in node.iter_values], rename(node.predicate)
        iter_vars = [
            tirx.IterVar(each.dom, tirx.Var(each.var.name, "int32"), each.iter_type) for each in block.iter_vars
        ]
        names.extend((each.var, own.var) for each, own in zip(block.iter_vars, iter_vars, strict=True))
        body, reads, writes = rename(block.body), ranges(block.reads), ranges(block.writes)
        changed = changed_block(block, iter_vars=iter_vars, reads=reads, writes=writes, body=body)
        return s_tir.SBlockRealize(values, predicate, changed)

    return walk(nest)


def _nested(loops: list[tirx.For], body: Any) -> Any:
    for loop in reversed(loops):
        body = tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body, loop.thread_binding, {})
    return body


def _on_pair(loop: tirx.For) -> Any:
    """`sum[.., pair] = sum[.., pair] + value * tile[.., pair]` as a call on both."""
    block = loop.body.block
    store = block.body
    if not isinstance(store.value, tirx.Add):  # the first value of the sum, decomposed from it
        return tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.UNROLLED, loop.body, None, {})
    total = store.buffer
    value, element = (_loaded(factor) for factor in (store.value.b.a, store.value.b.b))
    dtype = str(element.source.dtype)
    name = f"pair_sum_{total.dtype}_{dtype}"
    source = SUM_IN_PAIRS if str(total.dtype) == dtype else SUM_IN_FLOAT32
    source = source.replace("ELEMENT", ELEMENT[dtype]).replace("VECTOR", VECTOR[dtype]).replace("NAME", name)
    *outer, last = element.indices
    both = tirx.BufferLoad(element.source, [*outer, tirx.Ramp(last, 1, PAIR)])
    sums = T.address_of(tirx.BufferLoad(total, list(store.indices)))
    call = cuda_func_call(name, sums, both, value, source_code=source, return_type="void")

    def whole(region: Any) -> Any:
        if not region.source.same_as(total):
            return region
        return tirx.BufferRegion(total, [*list(region.region)[:-1], tvm.ir.Range(0, PAIR)])

    return _at_first(
        loop.body,
        [loop.loop_var],
        reads=[whole(region) for region in block.reads],
        writes=[whole(region) for region in block.writes],
        body=tirx.Evaluate(call),
    )


def _loaded(factor: Any) -> Any:
    """A load without the conversion to float32 around it."""
    return factor.value if isinstance(factor, tirx.Cast) else factor
