"""A convolution with a stride, as one without on an input that is stored phase by phase.

With a stride, neighbouring taps of a kernel read different phases of the input: the pixels whose row and column are the
same modulo the stride. A GPU kernel sorts them as it fills its tiles, and copies them one by one. The layer in front
can store each of its channels as that many planes at once, a phase each:

    x'[n, c·(sh·sw) + (row mod sh)·sw + col mod sw, row div sh, col div sw] = x[n, c, row, col]

What is left is a convolution without a stride on c·sh·sw channels, with a smaller kernel and the same nonzeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from tvm import relax
from tvm.target import Target

from tvm_sparse.network.decide import decide
from tvm_sparse.network.imported import Array, reader_counts
from tvm_sparse.network.match import ConvLayer
from tvm_sparse.tuning.lookup import KnownKernels
from tvm_sparse.workload import ELEMENT_BYTES, ConvWorkload

#: Estimates, from ResNet-50 on an H200: what storing by phases costs the layer in front, whose stores then go to
#: several planes, and the output pixels up to which it pays where nothing was measured.
STORE_US_PER_MIB, MOST_PIXELS = 0.25, 1_000
MIB = 2**20


def store_by_phases(
    function: relax.Function,
    layers: Sequence[ConvLayer],
    mode: str,
    target: Target,
    known: KnownKernels | None = None,
    everywhere: bool = False,
) -> list[ConvLayer]:
    """The layers, with sparse strided ones on a GPU without their stride, and `phases` of the layers in front of them.

    The layer in front is one that a template runs and nobody else reads. What was measured for a layer decides whether
    it pays, and where nothing was, how many pixels there are; unless it is wanted `everywhere`. `mode` and `known` as
    for decide().
    """
    planned = list(layers)
    if target.kind.name != "cuda":
        return planned
    readers = reader_counts(function)
    at = {layer.root: index for index, layer in enumerate(planned) if not layer.merged}
    for index, layer in enumerate(planned):
        front = at.get(layer.x)
        if layer.workload is None or front is None or readers[layer.x] != len(layer.parts):
            continue
        if (left := without_stride(layer.workload, layer.weight)) is None:
            continue
        plain = replace(layer, workload=left[0], weight=left[1], strided=layer)
        sparse = all(decide(each, mode, known, gpu=True).kind == "sparse" for each in (layer, plain))
        pays = everywhere or _pays(layer, plain, known)
        if sparse and pays and decide(planned[front], mode, known, gpu=True).direct:
            planned[index] = plain
            planned[front] = replace(planned[front], phases=layer.workload.stride)
    return planned


def without_stride(workload: ConvWorkload, weight: Array) -> tuple[ConvWorkload, Array] | None:
    """The workload and its filter on an input by phases, (k, c·sh·sw, r', s'); None where there is no such thing.

    There is one of a dense convolution with a stride that divides the input and a kernel of several taps.
    """
    (down, across), (k, c, r, s) = workload.stride, weight.shape
    if (down, across) == (1, 1) or (r, s) == (1, 1) or workload.dilation != (1, 1) or workload.groups != 1:
        return None
    if workload.h % down or workload.w % across:
        return None
    top, left, _, _ = workload.padding
    rows = _cut(r, down, top, workload.h, workload.p)
    cols = _cut(s, across, left, workload.w, workload.q)
    phases = np.zeros((k, c, down, across, rows.taps, cols.taps), weight.dtype)
    for row, (phase_row, tap_row) in enumerate(rows.places):
        for col, (phase_col, tap_col) in enumerate(cols.places):
            phases[:, :, phase_row, phase_col, tap_row, tap_col] = weight[:, :, row, col]
    channels = c * down * across
    plain = replace(
        workload,
        c=channels,
        h=workload.h // down,
        w=workload.w // across,
        r=rows.taps,
        s=cols.taps,
        stride=(1, 1),
        padding=(rows.front, cols.front, rows.behind, cols.behind),
    )
    return plain, phases.reshape(k, channels, rows.taps, cols.taps)


class _Cut(NamedTuple):
    """An axis of a kernel, cut into phases: phase and new tap of every tap, new taps, and the padding of both ends."""

    places: list[tuple[int, int]]
    taps: int
    front: int
    behind: int


def _cut(taps: int, step: int, padding: int, size: int, outputs: int) -> _Cut:
    """Tap t of an output pixel o reads o·step + t - padding: pixel o + shift of a phase, shift rounded down."""
    shifts, phases = zip(*(divmod(tap - padding, step) for tap in range(taps)), strict=True)
    front = -shifts[0]
    left = shifts[-1] + front + 1
    return _Cut(
        [(phase, shift + front) for phase, shift in zip(phases, shifts, strict=True)],
        left,
        front,
        outputs - size // step - front + left - 1,
    )


def _pays(layer: ConvLayer, plain: ConvLayer, known: KnownKernels | None) -> bool:
    workload = layer.workload
    assert workload is not None and plain.workload is not None
    strided_us, plain_us = (
        match.sparse_us if known is not None and (match := known.find(each, density)) is not None else None
        for each, density in ((workload, layer.density), (plain.workload, plain.density))
    )
    if strided_us and plain_us:
        stored = workload.n * workload.c * workload.h * workload.w * ELEMENT_BYTES[workload.dtype]
        return plain_us + STORE_US_PER_MIB * stored / MIB < strided_us
    return not strided_us and workload.n * workload.p * workload.q <= MOST_PIXELS
