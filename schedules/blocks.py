"""Statements of a scheduled function with something changed; s_tir's nodes cannot be changed in place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tvm_ffi
from tvm import s_tir, tirx

_FIELDS = (
    "iter_vars",
    "reads",
    "writes",
    "name_hint",
    "body",
    "init",
    "alloc_buffers",
    "match_buffers",
    "annotations",
)


def changed_block(block: s_tir.SBlock, **changes: Any) -> s_tir.SBlock:
    """`block` with these fields in place of its own."""
    return s_tir.SBlock(*(changes.get(name, getattr(block, name)) for name in _FIELDS))


def at_first(realize: s_tir.SBlockRealize, loop_vars: list[Any], **changes: Any) -> s_tir.SBlockRealize:
    """A block, changed, in the first step of some loops."""

    def first(var: tirx.Var) -> Any:
        return tirx.const(0, "int32") if any(var.same_as(own) for own in loop_vars) else var

    return s_tir.SBlockRealize(
        [tvm_ffi.structural_map(value, (tirx.Var, first), order="post") for value in realize.iter_values],
        tvm_ffi.structural_map(realize.predicate, (tirx.Var, first), order="post"),
        changed_block(realize.block, **changes),
    )


def substituted(expression: Any, values: Iterable[tuple[Any, Any]]) -> Any:
    """An expression with values in the place of variables."""
    pairs = list(values)

    def put(var: tirx.Var) -> Any:
        return next((value for old, value in pairs if old.same_as(var)), var)

    return tvm_ffi.structural_map(expression, (tirx.Var, put), order="post")


def uses(expression: Any, *variables: Any) -> bool:
    """Whether any of the variables occurs in an expression."""
    used: list[Any] = []
    tvm_ffi.structural_walk(expression, (tirx.Var, used.append), order="pre")
    return any(var.same_as(own) for var in used for own in variables)
