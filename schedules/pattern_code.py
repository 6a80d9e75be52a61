"""Turn the sum of a convolution whose filter is known into straight-line code: one multiply-add for every nonzero.

A schedule marks the innermost loops of the sum, over output channels, channels of a chunk and kernel elements, that
multiply an element of `weight` by an element of the input. This pass, which runs after scheduling, evaluates them for
every row group and chunk: an input element is loaded once for all output channels of the group that use it, and the
weights are numbers in the code. A balanced tree of conditions, the same for all threads of a block, finds the code.
What is loaded may be a pair of 16-bit pixels, with a sum for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from numpy.typing import NDArray
from tvm import s_tir, tirx
from tvm.backend.cuda.op import cuda_func_call
from tvm.sym import Analyzer

from tvm_sparse.schedules.blocks import substituted
from tvm_sparse.schedules.pattern_ptx import Loads, nonzero_function
from tvm_sparse.schedules.storage import whole

PATTERN = "pattern"


def mark_pattern(sch: s_tir.Schedule, loop: Any) -> None:
    """Mark the outermost of the loops (v, [pair], c, r, s) to evaluate."""
    sch.annotate(loop, PATTERN, 1)


def evaluate_pattern(
    func: tirx.PrimFunc, weight: NDArray, rows_per_group: int, channels: int, chunk_dtype: str = "float32"
) -> tirx.PrimFunc:
    """Replace the marked loops by code for the nonzeros of `weight`, and drop the parameter "weight".

    Parameters
    ----------
    weight : (row groups x rows_per_group, chunks x channels, r, s)
    rows_per_group : output channels of a block
    channels : input channels of a chunk
    chunk_dtype : of the sums of pairs over the nonzeros of a chunk; those sums are added in float32
    """

    def rewrite(loop: tirx.For) -> Any:
        if PATTERN not in loop.annotations:
            return loop
        return _Pattern(loop, weight, rows_per_group, channels, chunk_dtype).code()

    body = tvm_ffi.structural_map(func.body, (tirx.For, rewrite), order="post")
    kept = [param for param in func.params if param.name != "weight"]
    return tirx.PrimFunc(kept, body, func.ret_type, func.attrs)


class _Pattern:
    """One marked nest: loops v, [pair], c, r, s around a block `part[v] += weight[k, channel, r, s] * element`."""

    def __init__(self, loop: tirx.For, weight: NDArray, rows_per_group: int, channels: int, chunk_dtype: str) -> None:
        self.weight, self.rows, self.channels, self.chunk_dtype = weight, rows_per_group, channels, chunk_dtype
        self.loops: list[Any] = []
        found: list[Any] = []
        tvm_ffi.structural_walk(loop, (tirx.For, lambda inner: self.loops.append(inner.loop_var)), order="pre")
        tvm_ffi.structural_walk(loop, (s_tir.SBlockRealize, found.append), order="pre")
        (realize,) = found
        self.paired = len(self.loops) > len("vcrs")
        self.block = realize.block
        self.values = list(zip((it.var for it in self.block.iter_vars), realize.iter_values, strict=True))
        self.store = self.block.body
        self.loads: dict[str, Any] = {}
        tvm_ffi.structural_walk(self.store.value, (tvm.ir.TensorLoad, self._note_load), order="pre")
        self.analyzer = Analyzer()

    def _note_load(self, load: Any) -> None:
        if not load.source.same_as(self.store.buffer):
            self.loads["weight" if load.source.name == "weight" else "element"] = load

    def at(self, expr: Any, v: int = 0, c: int = 0, r: int = 0, s: int = 0, pair: int = 0) -> Any:
        """An expression of the block for one point of the loops."""
        return self.analyzer.simplify(self._point(substituted(expr, self.values), v, c, r, s, pair))

    def _point(self, expr: Any, v: int, c: int, r: int, s: int, pair: int = 0) -> Any:
        """An expression of the loops for one point of them."""
        place = (v, pair, c, r, s) if self.paired else (v, c, r, s)
        return substituted(expr, [(var, tirx.const(at, "int32")) for var, at in zip(self.loops, place, strict=True)])

    def code(self) -> Any:
        weight, element, part = self.loads["weight"], self.loads["element"], self.store.buffer
        group = self.analyzer.simplify(self.at(weight.indices[0]) // self.rows)
        chunk = self.analyzer.simplify(self.at(weight.indices[1]) // self.channels)
        groups, chunks = self.weight.shape[0] // self.rows, self.weight.shape[1] // self.channels
        source = element.source
        scope = "shared" if source.scope().startswith("shared") else "global"
        loads = Loads(str(source.dtype), scope, self.paired, self.chunk_dtype)
        (place,) = source.offset_of(element.indices)
        first = self.at(place)
        # Kept, or TVM would work it out anew in every leaf, as far as that leaf's condition simplifies it.
        base = tirx.decl_buffer((1,), "int32", "base", scope="local")
        # Accesses that TVM's passes see, unlike T.address_of: they put the barriers around them.
        x, sums = source.access_ptr("r", offset=tirx.BufferLoad(base, [0])), part.access_ptr("rw")
        offsets = self._offsets(place)

        def leaf(g: int, ch: int) -> Any:
            own = self.weight[g * self.rows : (g + 1) * self.rows, ch * self.channels : (ch + 1) * self.channels]
            if not own.any():
                return tirx.Evaluate(0)
            name, text = nonzero_function(loads, own.reshape(self.rows, -1), offsets)
            return tirx.Evaluate(cuda_func_call(name, sums, x, source_code=text))

        tree = _choose(group, range(groups), lambda g: _choose(chunk, range(chunks), lambda ch: leaf(g, ch)))
        code = tirx.SeqStmt([tirx.BufferStore(base, first, [0]), tree])
        regions = [whole(part), whole(source)]
        return s_tir.SBlockRealize(
            [], True, s_tir.SBlock([], regions, regions[:1], "pattern", code, alloc_buffers=[base])
        )

    def _offsets(self, place: Any) -> list[int]:
        """Distance in elements from the first to every (channel of a chunk, kernel element), in their order."""
        first = [(var, tirx.const(0, "int32")) for var in self.loops]
        bound = substituted(place, self.values)
        distance = self.analyzer.simplify(bound - substituted(bound, first))
        points = np.ndindex(self.channels, *self.weight.shape[2:])
        return [int(self.analyzer.simplify(self._point(distance, 0, *point))) for point in points]


def _choose(selector: Any, options: Sequence[int], code: Callable[[int], Any]) -> Any:
    """A statement that runs the code of one option out of a range, found by halving."""
    if len(options) == 1:
        return code(options[0])
    middle = len(options) // 2
    below, above = (_choose(selector, half, code) for half in (options[:middle], options[middle:]))
    return tirx.IfThenElse(selector < options[middle], below, above)
