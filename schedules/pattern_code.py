"""Turn the sum of a convolution whose filter is known into straight-line code: one multiply-add for every nonzero.

A schedule marks the innermost loops of the sum, over output channels, channels of a chunk and kernel elements, that
multiply an element of `weight` by an element of the input. This pass, which runs after scheduling, evaluates them for
every row group and chunk: an input element is loaded once for all output channels of the group that use it, and the
weights are numbers in the code. A balanced tree of conditions, the same for all threads of a block, finds the code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from numpy.typing import NDArray
from tvm import s_tir, tirx
from tvm.sym import Analyzer

from tvm_sparse.schedules.storage import whole

PATTERN = "pattern"


def mark_pattern(sch: s_tir.Schedule, loop: Any) -> None:
    """Mark the outermost of the loops (v, c, r, s) to evaluate."""
    sch.annotate(loop, PATTERN, 1)


def evaluate_pattern(func: tirx.PrimFunc, weight: NDArray, rows_per_group: int, channels: int) -> tirx.PrimFunc:
    """Replace the marked loops by code for the nonzeros of `weight`, and drop the parameter "weight".

    Parameters
    ----------
    weight : (row groups x rows_per_group, chunks x channels, r, s)
    rows_per_group : output channels of a block
    channels : input channels of a chunk
    """

    def rewrite(loop: tirx.For) -> Any:
        return _Pattern(loop, weight, rows_per_group, channels).code() if PATTERN in loop.annotations else loop

    body = tvm_ffi.structural_map(func.body, (tirx.For, rewrite), order="post")
    kept = [param for param in func.params if param.name != "weight"]
    return tirx.PrimFunc(kept, body, func.ret_type, func.attrs)


class _Pattern:
    """One marked nest: the loops v, c, r, s around a block `part[v] += weight[k, channel, r, s] * element`."""

    def __init__(self, loop: tirx.For, weight: NDArray, rows_per_group: int, channels: int) -> None:
        self.weight, self.rows, self.channels = weight, rows_per_group, channels
        self.loops: list[Any] = []
        found: list[Any] = []
        tvm_ffi.structural_walk(loop, (tirx.For, lambda inner: self.loops.append(inner.loop_var)), order="pre")
        tvm_ffi.structural_walk(loop, (s_tir.SBlockRealize, found.append), order="pre")
        (realize,) = found
        self.block = realize.block
        self.values = list(zip((it.var for it in self.block.iter_vars), realize.iter_values, strict=True))
        self.store = self.block.body
        self.loads: dict[str, Any] = {}
        tvm_ffi.structural_walk(self.store.value, (tvm.ir.TensorLoad, self._note_load), order="pre")
        self.analyzer = Analyzer()

    def _note_load(self, load: Any) -> None:
        if not load.source.same_as(self.store.buffer):
            self.loads["weight" if load.source.name == "weight" else "element"] = load

    def at(self, expr: Any, v: int = 0, c: int = 0, r: int = 0, s: int = 0) -> Any:
        """An expression of the block for one point of the loops."""
        point = [(var, tirx.const(at, "int32")) for var, at in zip(self.loops, (v, c, r, s), strict=True)]
        return self.analyzer.simplify(_substitute(_substitute(expr, self.values), point))

    def code(self) -> Any:
        group = self.analyzer.simplify(self.at(self.loads["weight"].indices[0]) // self.rows)
        chunk = self.analyzer.simplify(self.at(self.loads["weight"].indices[1]) // self.channels)
        groups, chunks = self.weight.shape[0] // self.rows, self.weight.shape[1] // self.channels
        element = self.loads["element"]
        first = [self.at(index) for index in element.indices]
        # The bases of the indices that vary: one register each, to which every load adds a number.
        varying = [any(_uses(_substitute(index, self.values), var) for var in self.loops) for index in element.indices]
        base = tirx.decl_buffer((max(1, sum(varying)),), "int32", "base", scope="local")
        bases = [(j, slot) for slot, j in enumerate(j for j, varies in enumerate(varying) if varies)]
        stores = [tirx.BufferStore(base, first[j], [slot]) for j, slot in bases]

        # A buffer for every sum: updates of one array of them take nvcc 20 times as long.
        part = self.store.buffer
        sums = [tirx.decl_buffer((1,), "float32", f"sum{v}", scope="local") for v in range(self.rows)]

        def leaf(g: int, ch: int) -> list[Any]:
            own = self.weight[g * self.rows : (g + 1) * self.rows, ch * self.channels : (ch + 1) * self.channels]
            used = np.flatnonzero(own.any(axis=(1, 2, 3))).tolist()
            places = {v: [self.at(index, v) for index in self.store.indices] for v in used}
            code: list[Any] = [tirx.BufferStore(sums[v], tirx.BufferLoad(part, places[v]), [0]) for v in used]
            for c, r, s in np.argwhere(own.any(axis=0)).tolist():
                indices = list(first)
                for j, slot in bases:
                    step = self.analyzer.simplify(self.at(element.indices[j], 0, c, r, s) - first[j])
                    indices[j] = tirx.BufferLoad(base, [slot]) + step
                value: Any = tirx.BufferLoad(element.source, indices)
                x = tirx.Var("x", "float32")
                code.append(tirx.Bind(x, tirx.Cast("float32", value) if value.ty.dtype != "float32" else value))
                for v in np.flatnonzero(own[:, c, r, s]).tolist():
                    term = tirx.const(float(own[v, c, r, s]), "float32") * x
                    code.append(tirx.BufferStore(sums[v], tirx.BufferLoad(sums[v], [0]) + term, [0]))
            return code + [tirx.BufferStore(part, tirx.BufferLoad(sums[v], [0]), places[v]) for v in used]

        tree = _choose(group, range(groups), lambda g: _choose(chunk, range(chunks), lambda ch: leaf(g, ch)))
        regions = [whole(self.store.buffer), whole(element.source)]
        # Stated regions keep TVM 0.27 from the union of thousands of accesses, a quarter of a minute.
        stated = {"explicit_read_region": [0, 1], "explicit_write_region": [0]}
        code = _sequence([*stores, *tree])
        block = s_tir.SBlock([], regions, regions[:1], "pattern", code, alloc_buffers=[base, *sums], annotations=stated)
        return s_tir.SBlockRealize([], True, block)


def _choose(selector: Any, options: Sequence[int], code: Callable[[int], list[Any]]) -> list[Any]:
    """Statements that run the code of one option out of a range, found by halving."""
    if len(options) == 1:
        return code(options[0])
    middle = len(options) // 2
    below, above = (_choose(selector, half, code) for half in (options[:middle], options[middle:]))
    return [tirx.IfThenElse(selector < options[middle], _sequence(below), _sequence(above))]


def _sequence(statements: Sequence[Any]) -> Any:
    if not statements:
        return tirx.Evaluate(0)
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(statements)


def _substitute(expr: Any, values: Iterable[tuple[Any, Any]]) -> Any:
    pairs = list(values)

    def bind(var: Any) -> Any:
        return next((value for old, value in pairs if old.same_as(var)), var)

    return tvm_ffi.structural_map(expr, (tirx.Var, bind), order="post")


def _uses(expr: Any, var: Any) -> bool:
    found: list[Any] = []
    tvm_ffi.structural_walk(expr, (tirx.Var, lambda used: found.append(used.same_as(var))), order="pre")
    return any(found)
