"""Which weights to keep: by magnitude, weight by weight or vector by vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_sparse.errors import InputError, ModelError

Array = NDArray[Any]


def magnitude_mask(weight: Array, sparsity: float, pattern: str = "unstructured") -> Array:
    """Mark the weights to keep.

    Parameters
    ----------
    weight : (K, ...) floating point
    sparsity : fraction to drop, in [0, 1); exactly ``round(sparsity * size)`` weights (or vectors) are dropped, also
        where magnitudes tie: of equal ones the first go first
    pattern : "unstructured", or "vector:V" to drop V consecutive output channels at one place together by their L2
        norm. Where V does not divide K the last vectors are shorter, and their norm is scaled by √(V / rows).

    Returns
    -------
    The shape of `weight`, bool; True is kept

    Raises
    ------
    InputError
        A sparsity outside [0, 1), an unknown pattern, or an array without two axes.
    ModelError
        NaN or Inf among the weights.
    """
    weight = np.asarray(weight)
    if weight.ndim < 2 or weight.dtype.kind != "f":
        raise InputError(f"magnitude pruning takes floating-point filters (K, ...), not {weight.dtype} {weight.shape}")
    check_finite(weight, "the filter")
    return joint_masks([weight], check_sparsity(sparsity), vector_length(pattern))[0]


def joint_masks(weights: Sequence[Array], sparsity: float, vector: int) -> list[Array]:
    """Masks as by `magnitude_mask` for several filters ranked together."""
    scores = [_scores(weight, vector) for weight in weights]
    if not scores:
        return []
    ranked = np.concatenate([score.ravel() for score in scores])
    kept = ~_smallest(ranked, round(sparsity * ranked.size))
    parts = np.split(kept, np.cumsum([score.size for score in scores])[:-1])
    return [
        np.repeat(part.reshape(score.shape), vector, axis=0)[: weight.shape[0]].reshape(weight.shape)
        for part, score, weight in zip(parts, scores, weights, strict=True)
    ]


def check_sparsity(sparsity: Any) -> float:
    """Return the sparsity as a float in [0, 1); anything else is an InputError."""
    try:
        value = float(sparsity)
    except (TypeError, ValueError):
        value = -1.0
    if not 0.0 <= value < 1.0:
        raise InputError(f"sparsity {sparsity!r}: give a fraction from 0 up to, but not including, 1 (0.9 for 90 %)")
    return value


def vector_length(pattern: str) -> int:
    """V of "vector:V", and 1 for "unstructured"; anything else is an InputError."""
    if pattern == "unstructured":
        return 1
    kind, _, length = str(pattern).partition(":")
    if kind == "vector" and length.isascii() and length.isdigit() and 1 <= int(length) <= 4096:
        return int(length)
    raise InputError(f"pattern {pattern!r}: use 'unstructured' or 'vector:V' with V from 1 to 4096, such as 'vector:4'")


def check_finite(weight: Array, name: str) -> None:
    """A ModelError naming the filter where it holds a NaN or an Inf."""
    bad = weight.size - int(np.count_nonzero(np.isfinite(weight)))
    if bad:
        raise ModelError(f"{name} of shape {weight.shape} has {bad} NaN or Inf weights; export the model again")


def _scores(weight: Array, vector: int) -> Array:
    """Root mean square of every vector: (ceil(K / V), size / K)."""
    k = weight.shape[0]
    matrix = weight.reshape(k, -1)
    if vector == 1:
        return np.abs(matrix)
    firsts = np.arange(0, k, vector)
    rows = np.minimum(vector, k - firsts)
    squares = np.add.reduceat(np.square(matrix, dtype=np.float64), firsts, axis=0)
    return np.sqrt(squares / rows[:, None])


def _smallest(scores: Array, count: int) -> Array:
    """Mark the `count` smallest of (n,) scores; of equal ones the first."""
    if count == 0:
        return np.zeros(scores.size, bool)
    limit = np.partition(scores, count - 1)[count - 1]
    marked = scores < limit
    ties = np.flatnonzero(scores == limit)
    marked[ties[: count - np.count_nonzero(marked)]] = True
    return marked
