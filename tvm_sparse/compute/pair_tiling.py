"""Tiles of 16-bit elements that a lane reads two at a time: a 4-byte word holds a pair of pixels.

The words of a tile are laid out as a WarpTiling lays out float32 elements. What a pair is depends on the layer:

    "columns"  two neighbouring pixels of a row of a pointwise convolution: a word of memory is a word of the tile
    "images"   one pixel of two neighbouring images, so that no shift by a column splits a pair: images interleave
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_sparse.compute.geometry import Source
from tvm_sparse.compute.warp_tiling import Extents, WarpTiling
from tvm_sparse.errors import InputError
from tvm_sparse.workload import ELEMENT_BYTES, ConvWorkload

#: Pixels of a word.
PAIR = 2
#: Elements of the dtype that takes a whole word; the words of a tile are laid out as those.
WORD = "float32"


def pair_axis(workload: ConvWorkload) -> str | None:
    """Along which axis a layer's pixels are paired, "columns" or "images"; None if they cannot be."""
    if ELEMENT_BYTES.get(workload.dtype) != 2:
        return None
    if workload.pointwise and workload.w % PAIR == 0:
        return "columns"
    return "images" if workload.n >= PAIR else None


def words_of(workload: ConvWorkload) -> ConvWorkload:
    """The layer whose elements are the words of pairs of this one.

    Raises
    ------
    InputError
        When the workload's pixels cannot be paired.
    """
    axis = pair_axis(workload)
    if axis is None:
        raise InputError(f"{workload}: pairs need 16-bit elements, and two images or a pointwise layer with even rows")
    if axis == "columns":
        return replace(workload, w=workload.w // PAIR, dtype=WORD)
    return replace(workload, n=-(-workload.n // PAIR), dtype=WORD)


@dataclass(frozen=True)
class PairTiling:
    """A tiling like WarpTiling whose lanes and pixels count pairs, and whose addresses and offsets count words.

    Raises
    ------
    InputError
        When the workload's pixels cannot be paired, or WarpTiling refuses the sizes.
    """

    workload: ConvWorkload = field(repr=False)
    lanes: Extents
    pixels: Extents
    channels: int
    splits: int = 1

    def __post_init__(self) -> None:
        # Its checks are these of this class.
        _ = self.words

    @cached_property
    def axis(self) -> str:
        return str(pair_axis(self.workload))

    @cached_property
    def words(self) -> WarpTiling:
        """The tiling of the words."""
        return WarpTiling(words_of(self.workload), self.lanes, self.pixels, self.channels, self.splits)

    @property
    def chunks(self) -> int:
        return self.words.chunks

    @property
    def images(self) -> int:
        return self.words.images * (PAIR if self.axis == "images" else 1)

    @property
    def rows(self) -> int:
        return self.words.rows

    @property
    def cols(self) -> int:
        return self.words.cols * (PAIR if self.axis == "columns" else 1)

    @property
    def grid(self) -> Extents:
        """Tiles along images, rows and columns of the output."""
        return self.words.grid

    @property
    def elements(self) -> int:
        """Elements of the buffer of one tile and chunk: two a word."""
        return PAIR * self.words.elements

    @property
    def conflicts(self) -> int:
        """Loads of the busiest memory bank when a warp reads its words."""
        return self.words.conflicts

    @property
    def pixel_shape(self) -> tuple[int, int, int]:
        """Words of a thread, lanes, pixels of a word."""
        return (*self.words.pixel_shape, PAIR)

    def pixel_index(self, n: Any, p: Any, q: Any) -> tuple[Any, Any, Any]:
        """Where output pixel (n, p, q) stands in the pixel dimensions of a partial sum of its tile."""
        if self.axis == "columns":
            return (*self.words.pixel_index(n, p, q // PAIR), q % PAIR)
        return (*self.words.pixel_index(n // PAIR, p, q), n % PAIR)

    def pixel_address(self, index: tuple[Any, ...]) -> Any:
        """Offset, in words, of the pixel at this index; which of its word it is, the index ends with."""
        return self.words.pixel_address((index[0], index[1]))

    def offsets(self, columns: NDArray[np.int32]) -> NDArray[np.int32]:
        """Stretched offsets, in words, of filter columns c·r·s + r·s + s (c counted in the group)."""
        return self.words.offsets(columns)

    @property
    def copy_width(self) -> int:
        """Elements that one copy moves: of one image where images are paired."""
        return self.words.copy_width * (PAIR if self.axis == "columns" else 1)

    @property
    def copy_shape(self) -> tuple[int, int]:
        """What is copied as (runs, elements of a run): copies at the same place of two runs differ by a constant."""
        runs, length = self.words.copy_shape
        return runs, length * (PAIR if self.axis == "columns" else 1)

    def source(
        self, copy: Any, element: Any, pair: Any, chunk: Any, image_tile: Any, tile_row: Any, tile_col: Any
    ) -> Source:
        """Where pixel `pair` of word copy·words.copy_width + element comes from."""
        image, channel, row, col, inside = self.words.source(copy, element, chunk, image_tile, tile_row, tile_col)
        if self.axis == "columns":
            return Source(image, channel, row, col * PAIR + pair, inside)
        image = image * PAIR + pair
        if self.workload.n % PAIR:
            inside = [*inside, image < self.workload.n]
        return Source(image, channel, row, col, inside)
