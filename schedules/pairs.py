"""What TVM 0.27 has no instruction for on pairs of 16-bit elements: put in after scheduling, as functions of CUDA.

A sum of products of pairs takes one load of a word for both. TVM would print vectors of such elements one by one, and
with stale operands where a register is both read and written.
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.backend.cuda.op import cuda_func_call
from tvm.script import tirx as T

from tvm_sparse.compute.pair_tiling import PAIR
from tvm_sparse.schedules.blocks import at_first, substituted, uses

PAIR_SUM, STEP_SUM = "pair_sum", "step_sum"

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

#: A step's nonzeros in turn, in as many instructions, before their sum is added in float32.
STEP_IN_PAIRS = """
__forceinline__ __device__ void NAME(float* sums, PARAMETERS) {
  VECTOR sum = __hmul2(make_VECTOR(value0, value0), pair0);
REST  sums[0] += (float)sum.x;
  sums[1] += (float)sum.y;
}
"""


def mark_pair_sum(sch: s_tir.Schedule, loop: Any) -> None:
    """Mark the innermost loop, over a pair, around `sum[..] = sum[..] + value * tile[..]`, for `use_pairs`."""
    sch.annotate(loop, PAIR_SUM, 1)


def mark_step_sum(sch: s_tir.Schedule, loop: Any) -> None:
    """Mark the loop over the nonzeros of a step around such a loop over a pair: the step is summed in 16 bits."""
    sch.annotate(loop, STEP_SUM, 1)


def use_pairs(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Put sums of pairs in the place of the marked loops."""

    def rewrite(loop: tirx.For) -> Any:
        if STEP_SUM in loop.annotations:
            return _on_step(loop)
        return _on_pair(loop) if PAIR_SUM in loop.annotations else loop

    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.For, rewrite), order="pre"))


def _on_pair(loop: tirx.For) -> Any:
    """`sum[.., pair] = sum[.., pair] + value * tile[.., pair]` as a call on both."""
    store = loop.body.block.body
    if not isinstance(store.value, tirx.Add):  # the first value of the sum, decomposed from it
        return tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.UNROLLED, loop.body, None, {})
    total, (value, both) = store.buffer, _factors(store)
    dtype = str(both.source.dtype)
    name = f"pair_sum_{total.dtype}_{dtype}"
    source = SUM_IN_PAIRS if str(total.dtype) == dtype else SUM_IN_FLOAT32
    return _called(name, source, dtype, loop.body, [loop.loop_var], [both, value])


def _on_step(loop: tirx.For) -> Any:
    """A loop over some nonzeros around such a loop over a pair as a call on all of them."""
    realize, count = loop.body.body, int(loop.extent)
    block = realize.block
    counter = next(
        each.var for each, value in zip(block.iter_vars, realize.iter_values, strict=True) if uses(value, loop.loop_var)
    )
    value, both = _factors(block.body)
    dtype = str(both.source.dtype)
    args = [substituted(factor, [(counter, counter + n)]) for n in range(count) for factor in (both, value)]
    parameters = ", ".join(f"VECTOR pair{n}, ELEMENT value{n}" for n in range(count))
    rest = [f"  sum = __hfma2(make_VECTOR(value{n}, value{n}), pair{n}, sum);\n" for n in range(1, count)]
    source = STEP_IN_PAIRS.replace("PARAMETERS", parameters).replace("REST", "".join(rest))
    return _called(f"pair_step{count}_{dtype}", source, dtype, realize, [loop.loop_var, loop.body.loop_var], args)


def _factors(store: tirx.BufferStore) -> tuple[Any, Any]:
    """The value and both elements of the tile, without conversions to float32, of the sum that is stored."""
    value, element = (_loaded(factor) for factor in (store.value.b.a, store.value.b.b))
    *outer, last = element.indices
    return value, tirx.BufferLoad(element.source, [*outer, tirx.Ramp(last, 1, PAIR)])


def _called(
    name: str, source: str, dtype: str, realize: s_tir.SBlockRealize, loop_vars: list[Any], args: list[Any]
) -> s_tir.SBlockRealize:
    """The block of a sum with a call on both elements of a pair in its place."""
    block = realize.block
    total = block.body.buffer
    source = source.replace("ELEMENT", ELEMENT[dtype]).replace("VECTOR", VECTOR[dtype]).replace("NAME", name)
    sums = T.address_of(tirx.BufferLoad(total, list(block.body.indices)))
    call = cuda_func_call(name, sums, *args, source_code=source, return_type="void")

    def whole(region: Any) -> Any:
        if not region.source.same_as(total):
            return region
        return tirx.BufferRegion(total, [*list(region.region)[:-1], tvm.ir.Range(0, PAIR)])

    reads, writes = ([whole(region) for region in regions] for regions in (block.reads, block.writes))
    return at_first(realize, loop_vars, reads=reads, writes=writes, body=tirx.Evaluate(call))


def _loaded(factor: Any) -> Any:
    """A load without the conversion to float32 around it."""
    return factor.value if isinstance(factor, tirx.Cast) else factor
