"""Which convolution of the Relax module is which layer of the user's model.

A name is given only where it is certain; otherwise the layer is called conv_<index>.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tvm

from tvm_sparse.network.imported import Array, ConvInfo, convolution_calls, is_constant, operator

_SAME_DIRECTION = 1 - 1e-4


@dataclass(frozen=True)
class NamedFilter:
    """A convolution of the user's model: name, filter shape, and the filter where it is a plain constant."""

    name: str
    shape: tuple[int, ...]
    weight: Array | None


def name_convolutions(module: tvm.IRModule, candidates: Sequence[NamedFilter]) -> tuple[ConvInfo, ...]:
    """Name the convolutions with a constant filter of "main".

    `candidates` are those of the user's model in the order in which the frontend met them. Passes may scale a
    filter's output channels and move a convolution; so each takes the next candidate in order if that has its shape
    and, channel by channel, its direction, or else the only other one that has.
    """
    left = list(candidates)
    taken: set[str] = set()
    infos = []
    calls = [call for call in convolution_calls(module["main"]) if is_constant(call.args[1])]
    for index, call in enumerate(calls):
        weight = call.args[1].value.numpy()
        fitting = [candidate for candidate in left if _fits(weight, candidate)]
        certain = len(fitting) == 1 or (fitting and len(left) == len(calls) - index and fitting[0] is left[0])
        name = f"conv_{index}"
        if certain:
            left.remove(fitting[0])
            name = fitting[0].name or name
        while name in taken:
            name += "_"
        taken.add(name)
        infos.append(ConvInfo(name, str(operator(call)), weight.shape))
    return tuple(infos)


def _fits(weight: Array, candidate: NamedFilter) -> bool:
    shape = candidate.shape
    if weight.ndim == 4 and len(shape) == 3:
        shape = (*shape[:2], 1, shape[2])
    if weight.shape != shape:
        return False
    if candidate.weight is None or not np.isfinite(weight).all():
        return True
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    others = candidate.weight.reshape(len(weight), -1).astype(np.float64)
    rows, others = _unit(rows), _unit(others)
    dots = np.abs((rows * others).sum(axis=1))
    # a channel scaled by zero, or one that was empty from the start, has no direction
    return bool(np.all((dots >= _SAME_DIRECTION) | ~rows.any(axis=1)))


def _unit(rows: Array) -> Array:
    largest = np.abs(rows).max(axis=1, keepdims=True)
    rows = rows / np.where(largest > 0, largest, 1)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(float).tiny)
