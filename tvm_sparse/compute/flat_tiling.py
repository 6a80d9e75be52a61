"""How output pixels lie on the threads of a warp where rows are no multiple of its lanes: one behind the other.

Rows of the input stand so close that the padding behind one is the padding in front of the next. Position row·pitch +
col of a tile is output pixel (row, col), and for the few columns of the padding none: a warp's lanes are 32
neighbouring positions, whatever rows they are of, and read 32 neighbouring elements. Of images 13 pixels wide that
leaves 12 % of the lanes idle; a warp of whole rows leaves a quarter.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tvm_sparse.compute.warp_tiling import WARP, Extents, WarpTiling
from tvm_sparse.errors import InputError
from tvm_sparse.workload import ConvWorkload


@dataclass(frozen=True)
class FlatTiling(WarpTiling):
    """A WarpTiling whose lanes count positions: `pixels` = (images, 1, positions of a thread, 32 apart).

    A tile is a whole image, or so many rows that no position is left: from tiles with a rest, s_tir (TVM 0.27) would
    conclude that a block of threads needs the next tile as well.

    Raises
    ------
    InputError
        As WarpTiling; where `why_not_flat` says so, or a tile is neither.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if reason := why_not_flat(self.workload):
            raise InputError(f"{self.workload}: no flat tiles: {reason}")
        if self.lanes != (1, 1, WARP) or self.pixels[1] != 1:
            raise InputError(f"{self}: the lanes of a flat tile are 1x1x{WARP}, its pixels in one row")
        if self.workload.p * self._pitch > self._positions and self._positions % self._pitch:
            raise InputError(f"{self}: {self._positions} positions are no image and no rows of {self._pitch}")

    @property
    def _positions(self) -> int:
        """Positions of an image."""
        return self.pixels[2] * WARP

    @cached_property
    def _pitch(self) -> int:
        width = self.copy_width
        return max(self.workload.q, -(-(self.col_axis.size - self._overlap) // width) * width)

    @property
    def images(self) -> int:
        return self.pixels[0]

    @property
    def rows(self) -> int:
        return min(self.workload.p, self._positions // self._pitch)

    @property
    def cols(self) -> int:
        return self.workload.q

    @property
    def whole_planes(self) -> bool:
        return False

    @property
    def _last(self) -> list[int]:
        return [self.images - 1, 0, self._positions - 1]

    @property
    def _limits(self) -> Extents:
        return 0, 0, WARP - 1

    @cached_property
    def _strides(self) -> tuple[int, int]:
        return self._pitch, self.row_axis.size * self._pitch

    def pixel_address(self, index: tuple[Any, Any]) -> Any:
        """Offset, in elements, of a position of the tile: an integer or a TVM expression."""
        own, lane = index
        return own // self.pixels[2] * self.image_stride + own % self.pixels[2] * WARP + lane

    def pixel_index(self, n: Any, p: Any, q: Any) -> tuple[Any, Any]:
        """Where output pixel (n, p, q) stands in the pixel dimensions of a partial sum of its tile."""
        place = (p if self.rows == self.workload.p else p % self.rows) * self.pitch + q
        return n % self.images * self.pixels[2] + place // WARP, place % WARP


def flat_pixels(workload: ConvWorkload, most: int) -> tuple[Extents, ...]:
    """The pixels of a thread, at most so many, for which tiles are whole images; none where nothing fits."""
    if why_not_flat(workload):
        return ()
    pitch = FlatTiling(workload, (1, 1, WARP), (1, 1, workload.p * workload.w + WARP * workload.h), 1).pitch
    positions = -(-workload.p * pitch // WARP)
    return tuple((images, 1, positions) for images in (1, 2) if images <= workload.n and images * positions <= most)


def why_not_flat(workload: ConvWorkload) -> str | None:
    """What keeps the rows of a workload from being one behind the other, or None."""
    if workload.stride != (1, 1):
        return "rows and columns of a stride lie apart"
    if workload.p == 1:
        return "there is one row only"
    return None
