"""The reference every kernel is judged by: direct convolution in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from tvm_sparse.errors import InputError

Array = NDArray[Any]
Activation = str | tuple[str, float, float] | None


def conv2d(
    x: Array,
    weight: Array,
    *,
    bias: Array | None = None,
    residual: Array | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    activation: Activation = None,
) -> Array:
    """Convolve, add the bias, add the residual, then apply the activation; all in float64.

    Parameters
    ----------
    x : (N, C, H, W)
    weight : (K, C/groups, R, S)
    bias : (K,)
    residual : (N, K, P, Q)
    padding : zeros at the top, left, bottom and right
    activation : see `activate`

    Returns
    -------
    (N, K, P, Q) float64

    Raises
    ------
    InputError
        Shapes that do not fit one another, a stride or dilation below 1, or an output without pixels.
    """
    x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    if x.ndim != 4 or weight.ndim != 4:
        raise InputError(f"conv2d takes (N, C, H, W) and (K, C/groups, R, S), not {x.shape} and {weight.shape}")
    n, c, _h, _w = x.shape
    k, group_channels, r, s = weight.shape
    if groups < 1 or k % groups or c != groups * group_channels:
        raise InputError(f"filter {weight.shape} does not fit the input {x.shape} with {groups} groups")
    if min(*stride, *dilation) < 1 or min(padding) < 0:
        raise InputError(f"stride {stride}, dilation {dilation} or padding {padding} is out of range")

    top, left, bottom, right = padding
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    p = (padded.shape[2] - (r - 1) * dilation[0] - 1) // stride[0] + 1
    q = (padded.shape[3] - (s - 1) * dilation[1] - 1) // stride[1] + 1
    if p < 1 or q < 1:
        raise InputError(f"filter {weight.shape} is larger than the padded input {padded.shape}")

    # (N, C, rows, Q, S): the S weights of a kernel row against each of its Q windows. One kernel row at a time: a
    # product per single tap would spend its time adding up y when C is small.
    windows = sliding_window_view(padded, (s - 1) * dilation[1] + 1, axis=3)[:, :, :, :: stride[1], :: dilation[1]]
    taps = weight.reshape(groups, k // groups, group_channels, r, s)
    y = np.zeros((n, groups, k // groups, p * q))
    for i in range(r):
        top_row = i * dilation[0]
        shifted = windows[:, :, top_row : top_row + (p - 1) * stride[0] + 1 : stride[0]].transpose(0, 1, 4, 2, 3)
        kernel_row = taps[:, :, :, i].reshape(groups, k // groups, group_channels * s)
        y += kernel_row @ shifted.reshape(n, groups, group_channels * s, p * q)
    y = y.reshape(n, k, p, q)

    if bias is not None:
        y += _shaped("bias", bias, (k,))[:, None, None]
    if residual is not None:
        y += _shaped("residual", residual, y.shape)
    return activate(y, activation)


def activate(y: Array, activation: Activation) -> Array:
    """Apply an activation in float64; NaN stays NaN.

    Parameters
    ----------
    activation : None, "relu", "relu6", ("clip", low, high), "silu" (y / (1 + e^-y)) or
        "hard_swish" (y · clip(y / 6 + 1/2, 0, 1))

    Raises
    ------
    InputError
        An activation that is none of these.
    """
    y = np.asarray(y, np.float64)
    match activation:
        case None:
            return y
        case "relu":
            return np.maximum(y, 0.0)
        case "relu6":
            return np.clip(y, 0.0, 6.0)
        case ("clip", low, high):
            return np.minimum(np.maximum(y, low), high)
        case "silu":
            with np.errstate(over="ignore"):
                return y / (1.0 + np.exp(-y))
        case "hard_swish":
            return y * np.clip(y / 6.0 + 0.5, 0.0, 1.0)
    raise InputError(
        f"unknown activation {activation!r}: use relu, relu6, ('clip', low, high), silu, hard_swish or None"
    )


def relative_error(actual: Array, reference: Array) -> float:
    """‖actual − reference‖₂ / ‖reference‖₂ in float64.

    Infinite where the shapes differ or either array holds a NaN or Inf; the absolute ‖actual‖₂ where the reference is
    all zero (0 for two arrays of zeros).
    """
    a, r = np.asarray(actual, np.float64), np.asarray(reference, np.float64)
    if a.shape != r.shape or not (np.isfinite(a).all() and np.isfinite(r).all()):
        return float("inf")
    # Scaled by the largest entry, so that no square over- or underflows.
    peak = float(np.abs(r).max(initial=0.0)) or 1.0
    with np.errstate(over="ignore"):
        error = float(np.linalg.norm((a / peak - r / peak).ravel()))
    size = float(np.linalg.norm((r / peak).ravel()))
    return error / (size or 1.0)


def _shaped(name: str, array: Array, shape: tuple[int, ...]) -> Array:
    array = np.asarray(array, np.float64)
    if array.shape != shape:
        raise InputError(f"{name} has the shape {array.shape}, not {shape}")
    return array
