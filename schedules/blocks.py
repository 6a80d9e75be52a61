"""A block of a scheduled function with some of its fields changed; s_tir's nodes cannot be changed in place."""

from __future__ import annotations

from typing import Any

from tvm import s_tir

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
