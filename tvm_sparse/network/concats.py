"""Concats along the channels that need no kernel: whatever computes a part stores it where it belongs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from tvm import relax

from tvm_sparse.network.imported import bindings_of, operator, reader_counts, static_shape


@dataclass(frozen=True)
class PartOfConcat:
    """A tensor that is channels `first` .. of the value of `concat`, which has `channels` of them."""

    concat: relax.Var
    first: int
    channels: int


def concats_in_place(function: relax.Function, stored: Collection[relax.Var]) -> dict[relax.Var, PartOfConcat]:
    """Every part of the concats all of whose parts are in `stored` and used nowhere else, by the part's variable."""
    uses = reader_counts(function)
    found: dict[relax.Var, PartOfConcat] = {}
    for var, value in bindings_of(function):
        if operator(value) != "relax.concat" or not isinstance(value.args[0], relax.Tuple):
            continue
        parts, shape = list(value.args[0].fields), static_shape(var)
        if shape is None or len(shape) != 4 or value.attrs.axis is None or int(value.attrs.axis) % 4 != 1:
            continue
        if not all(part in stored and uses[part] == 1 for part in parts):
            continue
        first = 0
        for part in parts:
            found[part] = PartOfConcat(var, first, shape[1])
            first += (static_shape(part) or shape)[1]
    return found
