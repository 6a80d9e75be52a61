"""Schedule steps that more than one template needs and s_tir does not offer."""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.s_tir.schedule import _ffi_api as schedule_ffi

ROW_LENGTH = "row_length"
#: The arrays a row's length is read from: where the filter lies, or staged.
ROW_LENGTHS = ("counts", "rows")


def declare_whole_read(sch: s_tir.Schedule, block: Any, buffer: str, dims: int = 1) -> None:
    """State that `block` may read `buffer` over the whole of its last dimensions, and elsewhere as s_tir found.

    Needed where the last index is read from memory (the tile of direct_conv2d), which s_tir cannot bound, and where a
    tighter bound would break vectors or threads (its pixels). The Python wrapper of this call is broken in TVM 0.27.
    """
    reads = list(sch.get(block).reads)
    index = next(i for i, read in enumerate(reads) if read.source.name == buffer)
    bounds: list[Any] = []
    for dim in reads[index].region[:-dims]:
        bounds += [dim.min, dim.min + dim.extent]
    for extent in reads[index].source.shape[-dims:]:
        bounds += [tirx.const(0, "int32"), extent]
    iters = [iter_var.var for iter_var in sch.get(block).iter_vars]
    schedule_ffi.ScheduleAnnotateBufferAccess(sch, block, index, 0, tirx.IndexMap(iters, bounds, None))


def mark_row_length(sch: s_tir.Schedule, loop: Any) -> None:
    """Mark the loop over a row's (groups of) nonzeros, for bind_row_length."""
    sch.annotate(loop, ROW_LENGTH, 1)


def bind_row_length(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Turn `for j in range(longest): if_then_else(j < counts[...], term, 0)` into `for j in range(counts[...]): term`.

    TE cannot schedule around a loop bound that is read from memory, so the bound is put in after scheduling.
    """

    def rewrite(loop: tirx.For) -> tirx.For:
        if ROW_LENGTH not in loop.annotations:
            return loop
        counts: list[Any] = []
        predicates: list[Any] = []

        def find_count(realize: s_tir.SBlockRealize) -> None:
            predicates.append(realize.predicate)
            bound = [(it.var, value) for it, value in zip(realize.block.iter_vars, realize.iter_values, strict=True)]

            def bind(var: tirx.Var) -> Any:
                return next((value for block_var, value in bound if block_var.same_as(var)), var)

            def visit(call: tvm.ir.Call) -> None:
                if _is_length_test(call):
                    counts.append(tvm_ffi.structural_map(call.args[0].b, (tirx.Var, bind), order="post"))

            tvm_ffi.structural_walk(realize.block.body, (tvm.ir.Call, visit), order="pre")

        tvm_ffi.structural_walk(loop.body, (s_tir.SBlockRealize, find_count), order="pre")
        body = tvm_ffi.structural_map(loop.body, (tvm.ir.Call, _drop_predicate), order="post")
        # A thread that is switched off has no row to take the length of.
        length = counts[0]
        for condition in _outer_conditions(predicates[0], loop):
            length = tirx.if_then_else(condition, length, 0)
        return tirx.For(loop.loop_var, loop.min, length, loop.kind, body, loop.thread_binding, {})

    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.For, rewrite), order="post"))


def _outer_conditions(predicate: Any, loop: tirx.For) -> list[Any]:
    """The conditions of a conjunction that hold or fail for the whole of a loop."""
    if isinstance(predicate, tirx.And):
        return _outer_conditions(predicate.a, loop) + _outer_conditions(predicate.b, loop)
    inner: list[Any] = [loop.loop_var]
    used: list[Any] = []
    tvm_ffi.structural_walk(loop.body, (tirx.For, lambda nested: inner.append(nested.loop_var)), order="pre")
    tvm_ffi.structural_walk(predicate, (tirx.Var, used.append), order="pre")
    return [predicate] if used and not any(var.same_as(own) for var in used for own in inner) else []


def _is_length_test(call: tvm.ir.Call) -> bool:
    if not str(call.op.name).endswith("if_then_else") or not isinstance(call.args[0], tirx.LT):
        return False
    loads: list[str] = []
    tvm_ffi.structural_walk(
        call.args[0].b, (tvm.ir.TensorLoad, lambda load: loads.append(load.source.name)), order="pre"
    )
    return any(name.startswith(ROW_LENGTHS) for name in loads)


def _drop_predicate(call: tvm.ir.Call) -> Any:
    return call.args[1] if _is_length_test(call) else call
