"""The batch sizes to compile a network for, out of what a user says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeAlias

from tvm_sparse.errors import InputError

#: A number, a range ("1-32") or the sizes themselves ("1,8,32").
Batch: TypeAlias = "int | str | Sequence[int]"
_RANGE = re.compile(r"\s*(\d+)\s*-\s*(\d+)\s*")
_SIZES = re.compile(r"\s*\d+\s*(,\s*\d+\s*)*")


def buckets_of(batch: Batch | None) -> tuple[int, ...]:
    """The batch sizes to compile for, ascending; none where none is named.

    Parameters
    ----------
    batch
        A number stands for itself; "LOW-HIGH" for both and the powers of two between them; sizes, as "1,8,32" or a
        sequence, for themselves.

    Raises
    ------
    InputError
        It is none of these, or names a size below 1.
    """
    if batch is None:
        return ()
    if isinstance(batch, int) and not isinstance(batch, bool):
        return (batch,)
    if isinstance(batch, str):
        if span := _RANGE.fullmatch(batch):
            low, high = int(span[1]), int(span[2])
            if low > high:
                raise InputError(f"batch {batch}: the range ends before it begins")
            sizes = [low, *(2**power for power in range(high.bit_length()) if low < 2**power < high), high]
        else:
            sizes = [int(size) for size in batch.split(",")] if _SIZES.fullmatch(batch) else []
    else:
        sizes = list(batch) if isinstance(batch, Sequence) else []
    if not sizes or not all(isinstance(size, int) and size >= 1 for size in sizes):
        raise InputError(f"batch {batch!r}: give a number, a range such as 1-32, or sizes such as 1,8,32; from 1 on")
    return tuple(sorted(set(sizes)))
