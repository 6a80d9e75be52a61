"""Turn the sum of a convolution whose filter is known into straight-line code: one multiply-add for every nonzero.

A schedule marks the innermost loops of the sum, over output channels, channels of a chunk and kernel elements, that
multiply an element of `weight` by an element of the input. This pass, which runs after scheduling, evaluates them for
every row group and chunk: an input element is loaded once for all output channels of the group that use it, and the
weights are numbers in the code. A balanced tree of conditions, the same for all threads of a block, finds the code.
What is loaded may be a pair of 16-bit pixels, with a sum for each.
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

from tvm_sparse.compute.pair_tiling import PAIR
from tvm_sparse.schedules.pairs import on_bits
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
        self.called: set[str] = set()
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
        place = (v, pair, c, r, s) if self.paired else (v, c, r, s)
        point = [(var, tirx.const(at, "int32")) for var, at in zip(self.loops, place, strict=True)]
        return self.analyzer.simplify(_substitute(_substitute(expr, self.values), point))

    def code(self) -> Any:
        group = self.analyzer.simplify(self.at(self.loads["weight"].indices[0]) // self.rows)
        chunk = self.analyzer.simplify(self.at(self.loads["weight"].indices[1]) // self.channels)
        groups, chunks = self.weight.shape[0] // self.rows, self.weight.shape[1] // self.channels
        element = self.loads["element"]
        first = [self.at(index) for index in element.indices]
        # The bases of the indices that vary: one register each, to which every load adds a number.
        over = [var for i, var in enumerate(self.loops) if not (self.paired and i == 1)]
        varying = [any(_uses(_substitute(index, self.values), var) for var in over) for index in element.indices]
        base = tirx.decl_buffer((max(1, sum(varying)),), "int32", "base", scope="local")
        bases = [(j, slot) for slot, j in enumerate(j for j, varies in enumerate(varying) if varies)]
        stores = [tirx.BufferStore(base, first[j], [slot]) for j, slot in bases]

        # A buffer for every sum: updates of one array of them take nvcc 20 times as long.
        part, pixels = self.store.buffer, range(PAIR if self.paired else 1)
        in_bits = self.chunk_dtype != "float32"
        sums = [
            [tirx.decl_buffer((1,), "uint32" if in_bits else "float32", f"sum{v}", scope="local") for _ in pixels]
            for v in range(self.rows)
        ]
        if in_bits:
            sums = [both[:1] for both in sums]

        def begin(v: int) -> list[Any]:
            if in_bits:
                return [tirx.BufferStore(sums[v][0], tirx.const(0, "uint32"), [0])]
            return [
                tirx.BufferStore(total, tirx.BufferLoad(part, self._place(v, pixel)), [0])
                for pixel, total in enumerate(sums[v])
            ]

        def end(v: int) -> list[Any]:
            if not in_bits:
                totals = [tirx.BufferLoad(total, [0]) for total in sums[v]]
            else:
                bits = tirx.BufferLoad(sums[v][0], [0])
                totals = [
                    tirx.BufferLoad(part, self._place(v, pixel)) + self._on_bits(name, bits)
                    for pixel, name in zip(pixels, ("pair_bits_first", "pair_bits_second"), strict=True)
                ]
            return [tirx.BufferStore(part, total, self._place(v, pixel)) for pixel, total in enumerate(totals)]

        def leaf(g: int, ch: int) -> list[Any]:
            own = self.weight[g * self.rows : (g + 1) * self.rows, ch * self.channels : (ch + 1) * self.channels]
            used = np.flatnonzero(own.any(axis=(1, 2, 3))).tolist()
            code: list[Any] = [statement for v in used for statement in begin(v)]
            for c, r, s in np.argwhere(own.any(axis=0)).tolist():
                indices = list(first)
                for j, slot in bases:
                    step = self.analyzer.simplify(self.at(element.indices[j], 0, c, r, s) - first[j])
                    indices[j] = tirx.BufferLoad(base, [slot]) + step
                loaded, values = self._loaded(element.source, indices)
                code += loaded
                for v in np.flatnonzero(own[:, c, r, s]).tolist():
                    code += self._multiply_add(sums[v], float(own[v, c, r, s]), values)
            return code + [statement for v in used for statement in end(v)]

        tree = _choose(group, range(groups), lambda g: _choose(chunk, range(chunks), lambda ch: leaf(g, ch)))
        regions = [whole(self.store.buffer), whole(element.source)]
        # Stated regions keep TVM 0.27 from the union of thousands of accesses, a quarter of a minute.
        stated = {"explicit_read_region": [0, 1], "explicit_write_region": [0]}
        code, kept = _sequence([*stores, *tree]), [total for own in sums for total in own]
        block = s_tir.SBlock([], regions, regions[:1], "pattern", code, alloc_buffers=[base, *kept], annotations=stated)
        return s_tir.SBlockRealize([], True, block)

    def _place(self, v: int, pixel: int) -> list[Any]:
        """Where the sum of output channel v, and of this pixel of a pair, stands."""
        return [self.at(index, v, pair=pixel) for index in self.store.indices]

    def _on_bits(self, name: str, *args: Any) -> Any:
        """A call of a function of pairs.ON_BITS, whose text only the first needs."""
        known = name in self.called
        self.called.add(name)
        return on_bits(name, *args, known=known)

    def _loaded(self, source: Any, indices: list[Any]) -> tuple[list[Any], list[Any]]:
        """Statements that load an input element, or a pair, and what they leave: a float32 a pixel, or bits of both."""
        dtype = str(source.dtype)
        if not self.paired:
            x, value = tirx.Var("x", "float32"), tirx.BufferLoad(source, indices)
            return [tirx.Bind(x, value if dtype == "float32" else tirx.Cast("float32", value))], [x]
        # An even number, as TVM must see to load both at once.
        last = self.analyzer.simplify(indices[-1] // PAIR) * PAIR
        pair = tirx.Var("pair", f"{dtype}x{PAIR}")
        names = ("pair_first", "pair_second") if self.chunk_dtype == "float32" else ("pair_bits",)
        values = [self._on_bits(name, pair) for name in names]
        kept = [tirx.Var("x", value.ty.dtype) for value in values]
        load = tirx.Bind(pair, tirx.BufferLoad(source, [*indices[:-1], tirx.Ramp(last, 1, PAIR)]))
        return [load, *(tirx.Bind(x, value) for x, value in zip(kept, values, strict=True))], kept

    def _multiply_add(self, sums: list[Any], number: float, values: list[Any]) -> list[Any]:
        """Statements that add number * values to the sums of an output channel."""
        if self.chunk_dtype != "float32":
            bits = int(np.float16(number).view(np.uint16))
            (total,), (x,) = sums, values
            number_twice = tirx.const(bits << 16 | bits, "uint32")
            both = self._on_bits("pair_bits_sum", tirx.BufferLoad(total, [0]), x, number_twice)
            return [tirx.BufferStore(total, both, [0])]
        return [
            tirx.BufferStore(total, tirx.BufferLoad(total, [0]) + tirx.const(number, "float32") * x, [0])
            for total, x in zip(sums, values, strict=True)
        ]


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
