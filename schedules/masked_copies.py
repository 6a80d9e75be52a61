"""Copies of an input's tile on a CPU: a vector at a time, its lanes beyond the input's edge masked.

Of `tile[..] = if_then_else(inside, x[..], 0)` in a loop over neighbours LLVM makes a test and a branch for each, since
nothing says that x may be read where it is not inside. A masked load reads the lanes that are: one instruction, which
CPUs with vectors of 256 bits and more have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.sym import Analyzer

from tvm_sparse.schedules.blocks import changed_block, substituted, uses
from tvm_sparse.schedules.copy_loops import Nest, conditional, integer, ramp
from tvm_sparse.tvm_support.masked_loads import load_or_zero

#: What the block is called that copies.
COPY = "tile"
#: Shorter vectors have no masked loads: LLVM would branch for every lane.
MASKED_BITS = 256
#: Distances of neighbours in the input: of more lanes loaded fewer are used.
STRIDES = (1, 2, 3, 4)
_OF_TWO = (
    *(tirx.Add, tirx.Sub, tirx.Mul, tirx.FloorDiv, tirx.FloorMod, tirx.Min, tirx.Max),
    *(tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.EQ, tirx.NE, tirx.And, tirx.Or),
)


def mask_copies(func: tirx.PrimFunc, width: int) -> tirx.PrimFunc:
    """The function with its copies `width` neighbours at a time, where they are neighbours in the input too."""
    analyzer = Analyzer()

    def know(loop: tirx.For) -> None:
        analyzer.bind(loop.loop_var, tvm.ir.Range.from_min_extent(loop.min, loop.extent))

    tvm_ffi.structural_walk(func.body, (tirx.For, know), order="pre")

    def rewrite(loop: tirx.For) -> tirx.For:
        inner = loop.body
        if not isinstance(inner, s_tir.SBlockRealize) or inner.block.name_hint != COPY:
            return loop
        return _masked(loop, min(width, int(loop.extent)), analyzer) or loop

    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.For, rewrite), order="post"))


def _masked(loop: tirx.For, width: int, analyzer: Analyzer) -> tirx.For | None:
    """The loop in steps of vectors; None where elements are at no fixed distance, or not all steps make up vectors."""
    nest, own = Nest(loop), loop.loop_var
    test, element = conditional(nest.value)
    if not isinstance(element, tvm.ir.TensorLoad):  # nothing of the input ever stands there
        return None
    if width < 2 or not isinstance(nest.inside, tirx.IntImm) or not int(nest.inside):
        return None
    last, place = (analyzer.simplify(at[-1]) for at in (element.indices, nest.place))
    stride = _step(last, own, analyzer)
    if int(loop.extent) % width or stride is None or _step(place, own, analyzer) != 1:
        return None
    var = tirx.Var(f"{own.name}_vector", "int32")
    first = [(own, var * width)]
    outer = [analyzer.simplify(index) for index in element.indices[:-1]]
    loaded = _Lanes(own, var * width, (width - 1) * stride + 1, stride, analyzer)
    conditions = [analyzer.simplify(each) for each in _conjuncts(test)]
    if any(isinstance(each, tirx.IntImm) and not int(each) for each in conditions):
        return None
    tests = [loaded.test(each) for each in conditions if not isinstance(each, tirx.IntImm)]
    if any(uses(index, own) for index in outer) or any(each is None for each in tests):
        return None
    indices = [*outer, ramp(substituted(last, first), loaded.count)]
    value = load_or_zero(element.source, indices, tests) if tests else tirx.BufferLoad(element.source, indices)
    if stride > 1:
        value = tirx.Shuffle([value], [integer(lane * stride) for lane in range(width)])
    at = [*(substituted(index, first) for index in nest.place[:-1]), ramp(substituted(place, first), width)]
    region = [tvm.ir.Range.from_min_extent(index, 1) for index in at[:-1]]
    region.append(tvm.ir.Range.from_min_extent(at[-1].base, width))
    block = changed_block(
        loop.body.block,
        iter_vars=[],
        reads=[tirx.BufferRegion(element.source, [tvm.ir.Range(0, extent) for extent in element.source.shape])],
        writes=[tirx.BufferRegion(nest.target, region)],
        body=tirx.BufferStore(nest.target, value, at),
    )
    body = s_tir.SBlockRealize([], tirx.const(True, "bool"), block)
    return tirx.For(var, integer(0), integer(int(loop.extent) // width), loop.kind, body)


def _step(index: Any, var: Any, analyzer: Analyzer) -> int | None:
    """How far the index of a step's neighbour lies away."""
    start = substituted(index, [(var, integer(0))])
    return next((step for step in STRIDES if analyzer.can_prove_equal(index - start, var * step)), None)


def _conjuncts(test: Any) -> list[Any]:
    if isinstance(test, tirx.And):
        return [*_conjuncts(test.a), *_conjuncts(test.b)]
    return [test]


@dataclass(frozen=True)
class _Lanes:
    """`count` neighbours in the input, of which every `stride`-th is an element of the loop over `var` from `first`."""

    var: Any
    first: Any
    count: int
    stride: int
    analyzer: Analyzer

    def test(self, test: Any) -> Any:
        """A test for every lane, no lane between two elements passing beyond both; None where that cannot be said."""
        if not uses(test, self.var):
            return tirx.Broadcast(test, self.count)
        found = self._compared(test)
        return self._lane_by_lane(test) if found is None and self.stride == 1 else found

    def _compared(self, test: Any) -> Any:
        """A comparison of something that grows along the loop with something that does not."""
        if not isinstance(test, tirx.LT | tirx.LE | tirx.GT | tirx.GE) or uses(test.a, self.var) == uses(
            test.b, self.var
        ):
            return None
        left = uses(test.a, self.var)
        grows, fixed = (test.a, test.b) if left else (test.b, test.a)
        step = _step(grows, self.var, self.analyzer)
        if step is None or self.stride % step:
            return None
        factor = self.stride // step
        lanes = ramp(substituted(grows, [(self.var, self.first)]) * factor, self.count)
        fixed = fixed * factor
        if isinstance(test, tirx.LT | tirx.GT):
            below = isinstance(test, tirx.LT) == left
            fixed = fixed - (factor - 1) if below else fixed + (factor - 1)
        fixed = tirx.Broadcast(fixed, self.count)
        return type(test)(lanes, fixed) if left else type(test)(fixed, lanes)

    def _lane_by_lane(self, expression: Any) -> Any:
        """An expression of integers with a vector in the place of the loop's variable."""
        if not uses(expression, self.var):
            return tirx.Broadcast(expression, self.count)
        if expression.same_as(self.var):
            return ramp(self.first, self.count)
        if not isinstance(expression, _OF_TWO):
            return None
        sides = [self._lane_by_lane(side) for side in (expression.a, expression.b)]
        return None if any(side is None for side in sides) else type(expression)(*sides)
