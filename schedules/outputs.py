"""Where a scheduled convolution stores its result: slices of wider tensors, as a concat along the channels wants it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tvm_ffi
from tvm import s_tir, tirx

from tvm_sparse.errors import InputError
from tvm_sparse.schedules.base import MOST_ELEMENTS
from tvm_sparse.schedules.blocks import changed_block
from tvm_sparse.schedules.storage import whole


@dataclass(frozen=True)
class Slice:
    """`channels` output channels that belong into channels `first` .. of output tensor `tensor`."""

    channels: int
    tensor: int
    first: int


def store_slices(func: tirx.PrimFunc, slices: Sequence[Slice], widths: Sequence[int]) -> tirx.PrimFunc:
    """Replace a kernel's last parameter "out" (n, k, p, q) by tensors (n, widths[t], p, q) that it stores parts of.

    Parameters
    ----------
    slices : of the k output channels, in their order; every other channel of the tensors is left as it is
    widths : channels of each tensor

    Raises
    ------
    InputError
        The slices are not the k channels, one lies beyond its tensor, or a tensor is too large for int32 indices.
    """
    out = func.params[-1]
    n, k, *pixels = (int(extent) for extent in out.shape)
    if sum(part.channels for part in slices) != k:
        raise InputError(f"{k} output channels cannot be stored as slices of {[part.channels for part in slices]}")
    for part in slices:
        if part.first + part.channels > widths[part.tensor]:
            raise InputError(f"{part} lies beyond its tensor of {widths[part.tensor]} channels")
    if max(widths) * n * math.prod(pixels) > MOST_ELEMENTS:
        raise InputError(f"a tensor of {n}x{max(widths)}x{'x'.join(map(str, pixels))} has more elements than int32")
    names = ["out"] if len(widths) == 1 else [f"out_{tensor}" for tensor in range(len(widths))]
    tensors = [
        tirx.decl_buffer((n, width, *pixels), out.dtype, name) for width, name in zip(widths, names, strict=True)
    ]

    def store(node: tirx.BufferStore) -> Any:
        if not node.buffer.same_as(out):
            return node
        image, channel, *pixel = node.indices
        begins = [sum(part.channels for part in slices[:index]) for index in range(len(slices))]
        stores = [
            tirx.BufferStore(tensors[part.tensor], node.value, [image, channel + (part.first - begin), *pixel])
            for part, begin in zip(slices, begins, strict=True)
        ]
        result: Any = stores[-1]
        for begin, before in zip(begins[:0:-1], stores[-2::-1], strict=True):
            result = tirx.IfThenElse(channel < begin, before, result)
        return result

    def block(node: s_tir.SBlock) -> s_tir.SBlock:
        if not any(write.source.same_as(out) for write in node.writes):
            return node
        others = [write for write in node.writes if not write.source.same_as(out)]
        return changed_block(node, writes=[*others, *map(whole, tensors)])

    body = tvm_ffi.structural_map(func.body, [(tirx.BufferStore, store), (s_tir.SBlock, block)], order="post")
    return tirx.PrimFunc([*func.params[:-1], *tensors], body, func.ret_type, func.attrs)
