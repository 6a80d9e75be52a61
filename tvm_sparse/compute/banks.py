"""Conflicts of a warp that reads the pixels of a tile: lanes whose words lie in one memory bank wait for each other."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

#: Lanes of a warp, memory banks and bytes of a bank's words, on every NVIDIA GPU.
WARP = 32
BANKS = 32
BANK_BYTES = 4

Extents = tuple[int, int, int]


@lru_cache(maxsize=4096)
def least_conflicts(
    lanes: Extents, limits: Extents, options: tuple[tuple[int, int], ...], element_bytes: int, row_step: int
) -> tuple[int, int]:
    """The (row stride, image stride) with the fewest bank conflicts, of those the one of least memory."""
    conflicts = _conflicts(lanes, limits, options, element_bytes, row_step)
    return min(zip(conflicts, options, strict=True), key=lambda pair: (pair[0], pair[1][1]))[1]


@lru_cache(maxsize=4096)
def busiest(lanes: Extents, limits: Extents, strides: tuple[int, int], element_bytes: int, row_step: int) -> int:
    """Loads of the busiest memory bank when a warp reads its pixels."""
    return int(_conflicts(lanes, limits, (strides,), element_bytes, row_step)[0])


def _conflicts(
    lanes: Extents, limits: Extents, options: tuple[tuple[int, int], ...], element_bytes: int, row_step: int
) -> NDArray:
    """For every (row stride, image stride): loads of the busiest bank when a warp reads its pixels.

    Rows of lanes are `row_step` rows apart.
    """
    image, row, col = (
        np.minimum(place, limit) for place, limit in zip(np.unravel_index(range(WARP), lanes), limits, strict=True)
    )
    strides = np.array(options)
    words = (image * strides[:, 1:] + row * row_step * strides[:, :1] + col) * element_bytes // BANK_BYTES
    words.sort(axis=1)
    # Lanes that read the same word share one load.
    first = np.diff(words, axis=1, prepend=-1) != 0
    banks = words % BANKS + np.arange(len(words))[:, None] * BANKS
    return np.bincount(banks[first], minlength=len(words) * BANKS).reshape(-1, BANKS).max(axis=1)
