"""Where a scheduled convolution stores its result: slices of wider tensors, as a concat along the channels wants it, or
phase by phase, as a convolution with a stride does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tvm_ffi
from tvm import s_tir, tirx

from tvm_sparse.errors import InputError
from tvm_sparse.schedules.base import MOST_ELEMENTS
from tvm_sparse.schedules.blocks import changed_block
from tvm_sparse.schedules.storage import whole

#: Of a function: by the name of a tensor, the channels of it that it stores and never loads, (first, last + 1) each.
_STORED = "tvm_sparse.stored_channels"


@dataclass(frozen=True)
class Slice:
    """`channels` output channels that belong into channels `first` .. of output tensor `tensor`."""

    channels: int
    tensor: int
    first: int


def store_slices(func: tirx.PrimFunc, slices: Sequence[Slice], shapes: Sequence[tuple[int, ...]]) -> tirx.PrimFunc:
    """Replace a kernel's last parameter "out" (n, k, p, q) by tensors that it stores parts of.

    Parameters
    ----------
    slices : of the k output channels, in their order; every other channel of the tensors is left as it is
    shapes : of the tensors, (n, channels, p, q) or, of a single output pixel, (n, channels)

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
        if part.first + part.channels > shapes[part.tensor][1]:
            raise InputError(f"{part} lies beyond its tensor of {shapes[part.tensor][1]} channels")
    forms = [tuple(pixels), ()] if math.prod(pixels) == 1 else [tuple(pixels)]
    for shape in shapes:
        if shape[0] != n or shape[2:] not in forms:
            raise InputError(f"a tensor {shape} cannot hold channels of {n} images of {pixels} pixels")
        if math.prod(shape) > MOST_ELEMENTS:
            raise InputError(f"a tensor {shape} has more elements than int32 can count")
    names = ["out"] if len(shapes) == 1 else [f"out_{tensor}" for tensor in range(len(shapes))]
    tensors = [tirx.decl_buffer(shape, out.dtype, name) for shape, name in zip(shapes, names, strict=True)]

    def store(node: tirx.BufferStore) -> Any:
        image, channel, *pixel = node.indices
        begins = [sum(part.channels for part in slices[:index]) for index in range(len(slices))]
        stores = []
        for part, begin in zip(slices, begins, strict=True):
            place = [image, channel + (part.first - begin), *pixel]
            tensor = tensors[part.tensor]
            stores.append(tirx.BufferStore(tensor, node.value, place[: len(tensor.shape)]))
        result: Any = stores[-1]
        for begin, before in zip(begins[:0:-1], stores[-2::-1], strict=True):
            result = tirx.IfThenElse(channel < begin, before, result)
        return result

    stored = {
        name: [[part.first, part.first + part.channels] for part in slices if part.tensor == tensor]
        for tensor, name in enumerate(names)
    }
    return _stored_otherwise(func, tensors, store).with_attr(_STORED, stored)


def store_phases(func: tirx.PrimFunc, shape: tuple[int, int, int, int], stride: tuple[int, int]) -> tirx.PrimFunc:
    """Store pixel (row, column) of "out", a kernel's last parameter, in a plane of those at its place in the stride.

    Parameters
    ----------
    shape : (n, k, h, w) of what "out" holds, which may have the pixels of an image in one row
    stride : (sh, sw), divides h and w

    Returns
    -------
    tirx.PrimFunc
        With "out" (n, k·sh·sw, h/sh, w/sw): channel k·sh·sw + (row mod sh)·sw + column mod sw has the pixels of
        channel k at (row, column), in their order. Where a vector was stored, TVM stores its elements one by one.

    Raises
    ------
    InputError
        The shape is not that of "out", or the stride does not divide it.
    """
    out = func.params[-1]
    (n, k, h, w), (down, across) = shape, stride
    own = [int(extent) for extent in out.shape]
    if own[:2] != [n, k] or own[2:] not in ([h, w], [1, h * w]) or h % down or w % across:
        raise InputError(f"an output {tuple(own)} of {h}x{w} pixels cannot be stored by phases of a stride {stride}")
    tensor = tirx.decl_buffer((n, k * down * across, h // down, w // across), out.dtype, "out")

    def store(node: tirx.BufferStore) -> Any:
        image, channel, row, col = node.indices
        if own[2:] != [h, w]:
            row, col = col // w, col % w
        plane = channel * (down * across) + row % down * across + col % across
        return tirx.BufferStore(tensor, node.value, [image, plane, row // down, col // across])

    return _stored_otherwise(func, [tensor], store)


def _stored_otherwise(func: tirx.PrimFunc, tensors: Sequence[Any], instead: Callable[[Any], Any]) -> tirx.PrimFunc:
    """A function with tensors in the place of its last parameter, and what is stored there by other statements."""
    out = func.params[-1]

    def store(node: tirx.BufferStore) -> Any:
        return instead(node) if node.buffer.same_as(out) else node

    def block(node: s_tir.SBlock) -> s_tir.SBlock:
        if not any(write.source.same_as(out) for write in node.writes):
            return node
        others = [write for write in node.writes if not write.source.same_as(out)]
        return changed_block(node, writes=[*others, *map(whole, tensors)])

    body = tvm_ffi.structural_map(func.body, [(tirx.BufferStore, store), (s_tir.SBlock, block)], order="post")
    return tirx.PrimFunc([*func.params[:-1], *tensors], body, func.ret_type, func.attrs)


def stored_channels(func: tirx.PrimFunc, parameter: tirx.Var) -> tuple[tuple[int, int], ...]:
    """The channels of a parameter, (first, last + 1) each, that a kernel stores and nothing else of it, if known."""
    stored = func.attrs.get(_STORED, {}) if func.attrs else {}
    return tuple((int(first), int(end)) for first, end in stored.get(parameter.name, ()))
