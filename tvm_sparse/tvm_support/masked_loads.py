"""Vectors loaded under a mask, zero in the lanes it leaves out; TVM 0.27 says nothing of what those hold.

A select with the mask for its condition would be the way. But TVM 0.27 takes a select's condition for known within its
value, drops it from the mask there, and the load reads what it must not. Needless once it leaves masks as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def load_or_zero(buffer: Any, indices: Sequence[Any], conditions: Sequence[Any]) -> Any:
    """The elements of a float buffer at `indices`, the last one a vector, where all the vectors of conditions hold."""
    from tvm import tirx
    from tvm.tirx import op

    mask = conditions[0]
    for each in conditions[1:]:
        mask = tirx.And(mask, each)
    lanes = int(indices[-1].lanes)
    loaded = op.masked_load(f"{buffer.dtype}x{lanes}", buffer, *indices, mask)
    inside = tirx.Cast(f"int8x{lanes}", mask) != tirx.Broadcast(tirx.const(0, "int8"), lanes)
    return tirx.Select(inside, loaded, tirx.Broadcast(tirx.const(0, buffer.dtype), lanes))
