"""Turn the sum over the instructions of a program into the jumps that carry them out.

A schedule marks the loop over the instructions, around those over output channels and pixels; this pass, which runs
after scheduling, puts one call in its place.
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.backend.cuda.op import cuda_func_call
from tvm.sym import Analyzer

from tvm_sparse.compute.jump_filter import Window
from tvm_sparse.schedules.blocks import substituted
from tvm_sparse.schedules.jump_ptx import jump_function
from tvm_sparse.schedules.storage import whole

JUMPS = "jumps"
#: What the function takes of shared memory, in its order.
ARGUMENTS = ("tile", "program", "rows")


def mark_jumps(sch: s_tir.Schedule, loop: Any) -> None:
    """Mark the loop over the instructions of a program, for `evaluate_jumps`."""
    sch.annotate(loop, JUMPS, 1)


def evaluate_jumps(func: tirx.PrimFunc, window: Window, vector: int, jumps: int) -> tirx.PrimFunc:
    """Replace the marked loop, over the block `part[..] += number * tile[..]`, by what `jump_function` gives."""
    name, text = jump_function(window, vector, jumps)

    def rewrite(loop: tirx.For) -> Any:
        return _call(loop, name, text) if JUMPS in loop.annotations else loop

    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.For, rewrite), order="post"))


def _call(loop: tirx.For, name: str, text: str) -> Any:
    inner: list[Any] = []
    realizes: list[Any] = []
    loads: dict[str, Any] = {}
    tvm_ffi.structural_walk(loop, (tirx.For, lambda each: inner.append(each.loop_var)), order="pre")
    tvm_ffi.structural_walk(loop, (s_tir.SBlockRealize, realizes.append), order="pre")
    (realize,) = realizes
    block = realize.block

    def note(load: Any) -> None:
        loads.setdefault(load.source.name.split("_")[0], load)

    tvm_ffi.structural_walk(block.body.value, (tvm.ir.TensorLoad, note), order="pre")
    values = list(zip((each.var for each in block.iter_vars), realize.iter_values, strict=True))
    start = [(var, tirx.const(0, "int32")) for var in inner]
    analyzer = Analyzer()

    def nothing(load: tvm.ir.TensorLoad) -> Any:
        staged = any(load.source.same_as(loads[name].source) for name in ("program", "rows"))
        return tirx.const(0, "int32") if staged else load

    def first(name: str) -> Any:
        """Where a buffer's first element stands that the loops read, were all rows and codes 0."""
        indices = [tvm_ffi.structural_map(at, (tvm.ir.TensorLoad, nothing), order="post") for at in loads[name].indices]
        if name == "program":
            indices[-1] = tirx.const(0, "int32")
        (place,) = loads[name].source.offset_of([substituted(substituted(at, values), start) for at in indices])
        # Accesses that TVM's passes see, unlike T.address_of: they put the barriers around them.
        return loads[name].source.access_ptr("r", offset=analyzer.simplify(place))

    part = block.body.buffer
    staged = [first(name) for name in ARGUMENTS]
    call = cuda_func_call(name, part.access_ptr("rw"), *staged, source_code=text)
    regions = [whole(part), *(whole(loads[name].source) for name in ARGUMENTS)]
    return s_tir.SBlockRealize([], True, s_tir.SBlock([], regions, regions[:1], "jumps", tirx.Evaluate(call)))
