"""What every way of cutting output pixels into tiles has: the stretched offset.

A tile's input, for one chunk of channels, is one flat buffer, so that

    input element of (filter column, pixel) = buffer[offset(column) + pixel_address(index)]

with `offset` known from the filter alone and `pixel_address` from the geometry alone (Escoin, arXiv 1802.10280, section
3.2: "stretched" weights).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tvm_sparse.workload import ConvWorkload


class Source(NamedTuple):
    """x[image, channel of the group, row, col] where all conditions of `inside` hold; otherwise zero, or never read."""

    image: Any
    channel: Any
    row: Any
    col: Any
    inside: list[Any]


class Tiling(Protocol):
    """Tiles of `images` x `rows` x `cols` output pixels, `channels` input channels a chunk.

    The chunks of a row are cut into `splits` independent partial sums (see direct_conv2d), equally many chunks each.
    """

    @property
    def workload(self) -> ConvWorkload: ...

    @property
    def channels(self) -> int: ...

    @property
    def splits(self) -> int: ...

    @property
    def chunks(self) -> int: ...

    @property
    def images(self) -> int: ...

    @property
    def rows(self) -> int: ...

    @property
    def cols(self) -> int: ...

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tiles along images, rows and columns of the output."""

    @property
    def elements(self) -> int:
        """Elements of the buffer of one tile and chunk."""

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """The pixel dimensions of a partial sum of a tile."""

    def pixel_index(self, n: Any, p: Any, q: Any) -> tuple[Any, ...]:
        """Where output pixel (n, p, q) stands in the pixel dimensions of a partial sum of its tile."""

    def pixel_address(self, index: tuple[Any, ...]) -> Any:
        """Offset, in elements, of the pixel at this index: an integer or a TVM expression."""

    def offsets(self, columns: NDArray[np.int32]) -> NDArray[np.int32]:
        """Stretched offsets, in elements, of filter columns c·r·s + r·s + s (c counted in the group)."""

    @property
    def copy_width(self) -> int:
        """Neighbouring elements of the buffer that are copied at once: all of them exist or none."""

    def source(self, copy: Any, element: Any, chunk: Any, image_tile: Any, tile_row: Any, tile_col: Any) -> Source:
        """Where in the input buffer element copy·copy_width + element comes from."""


def even_chunks(workload: ConvWorkload, channels: int, splits: int) -> int:
    """Chunks of `channels` of a group, rounded up so that every split has equally many."""
    needed = -(-workload.c_per_group // channels)
    return -(-needed // splits) * splits
