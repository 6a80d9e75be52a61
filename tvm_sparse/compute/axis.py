"""How the rows or the columns of a tile's input stand in its buffer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Axis:
    """Rows or columns of a tile: `tile` output positions of which `out` at most exist, `taps` of the kernel.

    Position x·stride + phase of the input stands at `margin + phase // step * span + x`.
    """

    out: int
    tile: int
    taps: int
    stride: int
    dilation: int
    margin: int = 0

    @cached_property
    def _phases(self) -> tuple[int, int]:
        used = sorted({tap * self.dilation % self.stride for tap in range(self.taps)})
        step = used[1] if len(used) > 1 else 1
        if used == list(range(0, step * len(used), step)):
            return len(used), step
        step = math.gcd(self.dilation, self.stride)
        return self.stride // step, step

    @property
    def span(self) -> int:
        """Stored positions of one phase."""
        return min(self.tile, self.out) + (self.taps - 1) * self.dilation // self.stride

    @property
    def size(self) -> int:
        """Stored positions."""
        return self.margin + self._phases[0] * self.span

    @property
    def phases(self) -> int:
        """Phases that are stored, the first ones; 0 if those are others, or spread over several strides."""
        return self._phases[0] if self._phases[1] == 1 else 0

    def place(self, x: Any) -> Any:
        """Where the input x positions behind the first one of the tile stands."""
        return self.margin + x % self.stride // self._phases[1] * self.span + x // self.stride

    def position(self, tap: Any) -> Any:
        """Where the input of output 0 and a tap stands."""
        return self.place(tap * self.dilation)

    def source(self, position: Any) -> Any:
        """The input position stored there, from the first input of the tile."""
        if self._phases[0] == 1:
            return (position - self.margin) * self.stride
        return position % self.span * self.stride + position // self.span * self._phases[1]
