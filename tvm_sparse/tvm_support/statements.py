"""Statements of lowered TIR put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx


def in_sequence(statements: Sequence[Any]) -> Any:
    """One statement of some, which may be sequences: TVM takes no sequence in a sequence, and none of one statement."""
    flat = [part for each in statements for part in (each.seq if isinstance(each, tirx.SeqStmt) else [each])]
    return tirx.SeqStmt(flat) if len(flat) > 1 else flat[0]
