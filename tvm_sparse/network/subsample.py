"""A pointwise convolution with a stride, as one without on every so manieth pixel of its input.

Copying single elements out of rows into a kernel's tiles is slow, and a block of every group of output channels does it
anew. Where there are many pixels, gathering those that count into a tensor of their own should cost less; with few, one
launch more should cost more. The tuning log has the convolutions with and without a stride, not the gathering.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tvm import relax
from tvm.target import Target

from tvm_sparse.network.match import ConvLayer
from tvm_sparse.workload import ConvWorkload

#: Output pixels from which on it should pay.
FEWEST_PIXELS = 6_000


def subsample_inputs(layers: Sequence[ConvLayer], target: Target) -> list[ConvLayer]:
    """The layers, with the workload that is left of those whose input is gathered first, and `every` saying how."""
    return [
        layer
        if layer.workload is None or (workload := subsampled(layer.workload, target)) == layer.workload
        else replace(layer, workload=workload, every=layer.workload.stride)
        for layer in layers
    ]


def subsampled(workload: ConvWorkload, target: Target) -> ConvWorkload:
    """What is left of a workload once its input is gathered; the workload itself where that does not pay."""
    pays = target.kind.name == "cuda" and workload.n * workload.p * workload.q >= FEWEST_PIXELS
    if not pays or (workload.r, workload.s) != (1, 1) or any(workload.padding) or workload.stride == (1, 1):
        return workload
    return replace(workload, h=workload.p, w=workload.q, stride=(1, 1))


def gathered(x: relax.Expr, every: tuple[int, int]) -> relax.Expr:
    """Every so manieth row and column of x (n, c, h, w), the first ones among them."""
    _, _, h, w = (int(size) for size in x.ty.shape)
    return relax.op.strided_slice(x, [2, 3], [0, 0], [h, w], list(every))
