"""Tests of copies into shared memory: outside the copies that they hold for, all of them.

What a thread copies from run to run lies a constant apart, inside the input or outside of it altogether. With a test in
every copy nvcc works out the places anew behind every branch, by instructions that wait for one another.
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.sym import Analyzer

from tvm_sparse.schedules.blocks import changed_block, substituted, uses

#: What the blocks are called that copy.
COPIES = ("tile", "values", "offsets", "program", "rows")
ALWAYS = tirx.const(True, "bool")


def branch_copies(func: tirx.PrimFunc, ahead: bool = True) -> tirx.PrimFunc:
    """Turn `tile[..] = if_then_else(inside, x[..], 0)` into two copies under a branch, around loops where it holds.

    TVM 0.27 makes asynchronous copies of several elements only where there is no test in the value. `ahead` says that
    copies run ahead in a software pipeline or the like, which makes them asynchronous.
    """
    func = func.with_body(tvm_ffi.structural_map(func.body, (s_tir.SBlock, _branched), order="post"))
    analyzer = Analyzer()

    def know(loop: tirx.For) -> None:
        analyzer.bind(loop.loop_var, tvm.ir.Range.from_min_extent(loop.min, loop.extent))

    tvm_ffi.structural_walk(func.body, (tirx.For, know), order="pre")

    def rewrite(loop: tirx.For) -> Any:
        return _tested_once(loop, analyzer, ahead)

    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.For, rewrite), order="pre"))


def _branched(block: s_tir.SBlock) -> Any:
    store = block.body
    if not block.name_hint.startswith("tile") or not isinstance(store, tirx.BufferStore):
        return block
    value = store.value
    if not (isinstance(value, tvm.ir.Call) and str(value.op.name).endswith("if_then_else")):
        return block
    condition, inside, outside = value.args
    body = tirx.IfThenElse(
        condition,
        tirx.BufferStore(store.buffer, inside, store.indices),
        tirx.BufferStore(store.buffer, outside, store.indices),
    )
    return changed_block(block, body=body)


def _tested_once(loop: tirx.For, analyzer: Analyzer, ahead: bool) -> Any:
    """A loop of copies behind the tests that hold for all its steps, or the loop as it is."""
    copy = _copy_in(loop)
    if copy is None:
        return loop
    realize, loop_vars = copy
    if ahead and _one_run(loop, realize, analyzer):
        return loop
    predicate = analyzer.simplify(realize.predicate)
    if uses(predicate, *loop_vars):
        return loop
    body = realize.block.body
    if not isinstance(body, tirx.IfThenElse):
        return loop if _true(predicate) else tirx.IfThenElse(predicate, _with_block(loop), None)
    own = [(each.var, value) for each, value in zip(realize.block.iter_vars, realize.iter_values, strict=True)]
    condition = analyzer.simplify(substituted(body.condition, own))
    if uses(condition, *loop_vars):
        return loop
    branch = tirx.IfThenElse(condition, _with_block(loop, body=body.then_case), _with_block(loop, body=body.else_case))
    return branch if _true(predicate) else tirx.IfThenElse(predicate, branch, None)


def _copy_in(statement: Any) -> tuple[s_tir.SBlockRealize, list[Any]] | None:
    """The copy that is all there is in a loop, and the variables of the loops around it.

    None of copies of several elements one by one: see `_one_run`.
    """
    loop_vars = []
    while isinstance(statement, tirx.For):
        one_by_one = statement.kind != tirx.ForKind.VECTORIZED and not _once(statement)
        if statement.thread_binding is not None or (one_by_one and not isinstance(statement.body, tirx.For)):
            return None
        loop_vars.append(statement.loop_var)
        statement = statement.body
    if not isinstance(statement, s_tir.SBlockRealize) or not statement.block.name_hint.startswith(COPIES):
        return None
    return statement, loop_vars


def _one_run(loop: tirx.For, realize: s_tir.SBlockRealize, analyzer: Analyzer) -> bool:
    """Whether the steps of a loop copy from one run of elements to one.

    TVM 0.27 takes such a loop, without a test, for a copy that CUDA has not.
    """
    length, inner = 1, loop.body
    while isinstance(inner, tirx.For):
        length *= int(inner.extent)
        inner = inner.body
    body = realize.block.body
    store = body.then_case if isinstance(body, tirx.IfThenElse) else body
    if not isinstance(store, tirx.BufferStore) or not isinstance(store.value, tvm.ir.TensorLoad):
        return False
    own = [(each.var, value) for each, value in zip(realize.block.iter_vars, realize.iter_values, strict=True)]

    def step(buffer: Any, indices: Any) -> Any:
        (place,) = buffer.offset_of(list(indices))
        place = substituted(place, own)
        return analyzer.simplify(substituted(place, [(loop.loop_var, loop.loop_var + 1)]) - place)

    steps = step(store.buffer, store.indices), step(store.value.source, store.value.indices)
    return all(isinstance(each, tirx.IntImm) and int(each) == length for each in steps)


def _with_block(loop: tirx.For, **changes: Any) -> tirx.For:
    """The loop, with variables of its own, around its block, without a predicate and with something changed."""
    inner = loop.body
    if isinstance(inner, tirx.For):
        inner = _with_block(inner, **changes)
    else:
        inner = s_tir.SBlockRealize(inner.iter_values, ALWAYS, changed_block(inner.block, **changes))
    var = tirx.Var(loop.loop_var.name, "int32")
    body = substituted(inner, [(loop.loop_var, var)])
    return tirx.For(var, loop.min, loop.extent, loop.kind, body, None, loop.annotations)


def _true(condition: Any) -> bool:
    return isinstance(condition, tirx.IntImm) and bool(int(condition))


def _once(loop: tirx.For) -> bool:
    return isinstance(loop.extent, tirx.IntImm) and int(loop.extent) == 1
