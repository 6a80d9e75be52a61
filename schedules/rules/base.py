"""What the dense schedule rules share: block inspection, exact splits, inlining."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod

import tvm_ffi
from tvm import ir, s_tir, sym, tirx
from tvm.s_tir.dlight.analysis import SBlockInfo, get_sblock_info, normalize_prim_func
from tvm.s_tir.dlight.analysis.common_analysis import get_sblockrealize

PARALLEL_MIN_WORK = 1 << 17
"""Scalar operations (about 10 µs of vector code) below which starting the thread pool costs more than it saves."""

MAX_VECTOR_EXTENT = 64
"""Widest loop handed to LLVM as one vector; it legalises odd widths to 16 + 8 + 4 + … lanes, compile time grows."""

COSTLY_CALLS = frozenset(
    f"tirx.{name}" for name in ("exp", "exp2", "sigmoid", "tanh", "erf", "log", "log2", "log1p", "pow", "sin", "cos")
)

CALL_WORK = 8
"""Work of one call of a transcendental function, in additions."""


def exact_lanes(extent: int, lanes: int) -> int:
    """The vector length for a loop: divides `extent`, so that no predicate scalarises it; 1 if none is good.

    A multiple of `lanes` is best, then the divisor (at most `MAX_VECTOR_EXTENT`) that legalises to the fewest pieces
    per element.
    """
    if extent % lanes == 0:
        return lanes
    divisors = [d for d in range(2, min(extent, MAX_VECTOR_EXTENT) + 1) if extent % d == 0]
    if not divisors:
        return 1
    best = min(divisors, key=lambda d: ((d // lanes + (d % lanes).bit_count()) / d, d))
    return best if best * 2 >= min(lanes, extent) else 1


def largest_divisor(extent: int, limit: int) -> int:
    """Largest divisor of `extent` that is at most `limit`."""
    return max(d for d in range(1, max(limit, 1) + 1) if extent % d == 0)


def whole_block(threads: int, most: int) -> int:
    """Threads of a block: `most`, half or a quarter of it, such that the last block needs no test; else `most`."""
    return next((n for n in (most, most // 2, most // 4) if threads % n == 0), most)


def extent_of(sch: s_tir.Schedule, loop: s_tir.schedule.LoopRV) -> int:
    """Extent of a loop; raises ValueError when it is not a constant."""
    extent = sch.get(loop).extent
    if not isinstance(extent, tirx.IntImm):
        raise ValueError(f"loop extent {extent} is not constant")
    return int(extent)


@dataclass
class Accesses:
    """Every buffer access of a block as a flat, row-major offset, and the variables used anywhere else."""

    offsets: list[tirx.Expr] = field(default_factory=list)
    is_store: list[bool] = field(default_factory=list)
    loose: list[tirx.Var] = field(default_factory=list)
    calls: int = 0

    def coefficients(self, variables: list[tirx.Var]) -> list[list[int] | None]:
        """Per access the constant step of its offset in each variable, or None when the offset is not linear."""
        result: list[list[int] | None] = []
        for offset in self.offsets:
            coefs = sym.detect_linear_equation(offset, variables)
            constant = len(coefs) > 0 and all(isinstance(c, tirx.IntImm) for c in coefs[: len(variables)])
            result.append([int(c) for c in coefs[: len(variables)]] if constant else None)
        return result


def flat_offset(buffer: tirx.Buffer, indices: Iterable[tirx.Expr]) -> tirx.Expr:
    """Row-major offset of an access, in elements."""
    offset: tirx.Expr = tirx.const(0, "int64")
    for extent, index in zip(buffer.shape, indices, strict=True):
        offset = offset * extent + index
    return offset


def accesses_of(block: s_tir.SBlock) -> Accesses:
    """Collect the accesses of a block's body and initialiser."""
    found = Accesses()
    bound = [v.var for v in block.iter_vars]

    def on_load(load: ir.TensorLoad) -> tvm_ffi.WalkResult:
        found.offsets.append(flat_offset(load.source, load.indices))
        found.is_store.append(False)
        return tvm_ffi.WalkResult.SKIP

    def on_store(store: tirx.BufferStore) -> tvm_ffi.WalkResult:
        found.offsets.append(flat_offset(store.buffer, store.indices))
        found.is_store.append(True)
        walk(store.value)
        return tvm_ffi.WalkResult.SKIP

    def on_call(call: ir.Call) -> None:
        found.calls += getattr(call.op, "name", "") in COSTLY_CALLS

    def on_var(var: tirx.Var) -> None:
        if any(var.same_as(b) for b in bound):
            found.loose.append(var)

    def walk(node: object) -> None:
        callbacks = [(tirx.BufferStore, on_store), (ir.TensorLoad, on_load), (ir.Call, on_call), (tirx.Var, on_var)]
        tvm_ffi.structural_walk(node, callbacks, order="pre")

    walk(block.body)
    return found


def inspect(sch: s_tir.Schedule) -> list[SBlockInfo]:
    """Blocks in order, one loop a block variable; brings the function to normal form (no unit loops) where it has one.

    Raises
    ------
    ValueError
        The function has no normal form and its loops are not its blocks' variables either.
    """
    if normalize_prim_func(sch.copy()):  # on a scalar block it fails half-way and leaves a broken schedule behind
        infos: list[SBlockInfo] = normalize_prim_func(sch)
        return infos
    infos = inspect_raw(sch)
    for info in infos:
        values, loops = get_sblockrealize(sch, info.block_rv).iter_values, sch.get_loops(info.block_rv)
        if len(values) != len(loops) or not all(
            value.same_as(sch.get(loop).loop_var) for value, loop in zip(values, loops, strict=True)
        ):
            raise ValueError(f"block {info.name} is not one loop a variable")
    return infos


def inspect_raw(sch: s_tir.Schedule) -> list[SBlockInfo]:
    """Blocks as they are written, in order, unit loops included (`inspect` drops those)."""
    return [get_sblock_info(sch, block) for block in sch.get_child_blocks(sch.get_sblock("root"))]


def only_reduction(infos: list[SBlockInfo]) -> SBlockInfo | None:
    """The one block that is not elementwise; None where there is none, or there are several."""
    reductions = [info for info in infos if not info.is_injective()]
    return reductions[0] if len(reductions) == 1 else None


def inline_injective(sch: s_tir.Schedule, infos: list[SBlockInfo], *, keep_calls: bool = True) -> list[SBlockInfo]:
    """Inline spatial blocks into their spatial consumers; return the blocks that remain, in order.

    Two kinds stay: a block a reduction reads (its value would be computed again for every term); with `keep_calls` also
    a block with a call in it whose consumer is over four times its size (a sigmoid broadcast over a plane).
    """
    remaining = list(infos)
    reductions = [i for i in remaining if not i.is_injective()]
    for info in list(remaining):
        if not info.is_injective():
            continue
        consumers = sch.get_consumers(info.block_rv)
        if not consumers:
            continue
        names = [sch.get(c).name_hint for c in consumers]
        if any(r.name in names for r in reductions):
            continue
        own = prod(int(d) for d in info.dom())
        largest = max(prod(int(v.dom.extent) for v in sch.get(c).iter_vars) for c in consumers)
        if keep_calls and largest > 4 * own and accesses_of(sch.get(info.block_rv)).calls:
            continue
        try:
            sch.compute_inline(info.block_rv)
        except s_tir.ScheduleError:
            continue
        remaining.remove(info)
    return remaining


def restore(func: tirx.PrimFunc, original: tirx.PrimFunc) -> tirx.PrimFunc:
    """Give a scheduled function the attributes of the function it was made from."""
    if "global_symbol" in func.attrs and "global_symbol" not in original.attrs:
        func = func.without_attr("global_symbol")
    for key, value in original.attrs.items():
        func = func.with_attr(key, value)
    return func
