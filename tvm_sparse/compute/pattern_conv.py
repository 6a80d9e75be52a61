"""Direct convolution for schedules that know the filter: its nonzeros become code, so no array of them is read.

    x    (n, c, h, w)                       dense input
    tile (ti, g, ty, tx, chunk, e, [pair])  input of one tile and channel chunk, padded, in the layout of the tile
    part (ti, kg, ty, tx, v, f, [pair])     Σ over all chunks, channels of a chunk and kernel elements
    out  (n, k, p, q)                       activation(part + bias + residual)

Output channels come in row groups of `rows_per_group`: k = kg * rows_per_group + v. Without a staged tile the pixels
of all images are one row, in tiles tx, and f may count pairs of them. The expression is that of a dense convolution;
schedules.pattern_code replaces its innermost sum by one multiply-add for every nonzero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx

from tvm_sparse.compute.banks import BANK_BYTES, BANKS
from tvm_sparse.compute.direct_conv import DirectConv
from tvm_sparse.compute.epilogue import output_stage
from tvm_sparse.compute.pair_tiling import PAIR, pair_axis
from tvm_sparse.errors import InputError
from tvm_sparse.workload import ELEMENT_BYTES, ConvWorkload

#: What a multiply-add and its share of the loads take in a program, in bytes (measured: 19 to 23).
BYTES_PER_NONZERO = 21
MOST_INTERLEAVED, TOLERABLE_WASTE = 8, 1.1


@dataclass(frozen=True)
class PatternFilter:
    """A filter that has become code: no arrays for the kernel to take."""

    nonzeros: int

    @property
    def arrays(self) -> tuple[NDArray, ...]:
        return ()

    @property
    def nbytes(self) -> int:
        """What the nonzeros take in the program, about."""
        return self.nonzeros * BYTES_PER_NONZERO


@dataclass(frozen=True)
class PatternTiling:
    """Tiles of `images` x `rows` x `cols` pixels, `channels` input channels a chunk, `rows_per_group` output channels.

    In the staged tile 32 consecutive pixels f = (image * rows + row) * cols + col stand in 32 memory banks, also where
    they reach over rows and images: rows of some channels lie side by side, so that the distance of two rows can be
    what the banks need, and the columns of a stride lie apart by phase. A tile that is not staged is `cols` pixels of
    the row of all pixels of all images, read from x; that is for 1x1 filters without padding only.

    With `paired`, 16-bit pixels are counted in pairs (see pair_tiling): neighbours in a row, `cols` pairs of them,
    where the tile is not staged, and those of two neighbouring images, 2·`images` in all, where it is.
    """

    workload: ConvWorkload = field(repr=False)
    images: int
    rows: int
    cols: int
    channels: int
    rows_per_group: int
    staged: bool = True
    paired: bool = False

    def __post_init__(self) -> None:
        if min(self.images, self.rows, self.cols, self.channels, self.rows_per_group) < 1:
            raise InputError(f"{self}: every size is 1 or more")
        if not self.staged and not reads_own_pixel(self.workload):
            raise InputError(f"{self.workload}: only a 1x1 filter without padding can do without a staged tile")
        if not self.staged and (self.images, self.rows) != (1, 1):
            raise InputError(f"{self}: without a staged tile, pixels are one row of one image")
        if self.paired and pair_axis(self.workload) != ("images" if self.staged else "columns"):
            raise InputError(f"{self.workload}: no pairs in a tile that is {'' if self.staged else 'not '}staged")

    @property
    def pixels(self) -> int:
        """Pixels of a tile, or pairs of them."""
        return self.images * self.rows * self.cols

    @property
    def pair(self) -> int:
        """Pixels that f counts as one."""
        return PAIR if self.paired else 1

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tiles along images, rows and columns of the output."""
        workload = self.workload
        if not self.staged:
            return 1, 1, -(-workload.n * workload.p * workload.q // (self.pair * self.cols))
        return -(-workload.n // (self.pair * self.images)), -(-workload.p // self.rows), -(-workload.q // self.cols)

    @property
    def chunks(self) -> int:
        return -(-self.workload.c_per_group // self.channels)

    @property
    def row_groups(self) -> int:
        """Row groups of all output channels; only the last one may be incomplete, and only without conv groups."""
        return -(-self.workload.k // self.rows_per_group)

    @property
    def _steps(self) -> tuple[int, int, int, int, int, int]:
        """Strides and dilations in units of the input rows and columns that are needed at all, and these units."""
        workload = self.workload
        unit_h = math.gcd(workload.stride[0], workload.dilation[0] if workload.r > 1 else 0)
        unit_w = math.gcd(workload.stride[1], workload.dilation[1] if workload.s > 1 else 0)
        (stride_h, stride_w), (dilation_h, dilation_w) = workload.stride, workload.dilation
        return stride_h // unit_h, stride_w // unit_w, dilation_h // unit_h, dilation_w // unit_w, unit_h, unit_w

    @property
    def _phases(self) -> tuple[int, int]:
        """Phases of the columns of a stride that the filter reads, and columns of each."""
        _, stride, _, dilation, _, _ = self._steps
        last = self.workload.s - 1
        return max(s * dilation % stride for s in range(last + 1)) + 1, self.cols + last * dilation // stride

    @property
    def in_rows(self) -> int:
        stride, _, dilation, _, _, _ = self._steps
        return (self.rows - 1) * stride + (self.workload.r - 1) * dilation + 1

    @property
    def _banks(self) -> int:
        """Elements of all memory banks."""
        return BANKS * BANK_BYTES // (self.pair * ELEMENT_BYTES[self.workload.dtype])

    @property
    def _lines(self) -> tuple[int, int]:
        """Channels whose rows lie side by side, and the distance of two rows, with little waste."""
        line = math.prod(self._phases)
        if self.rows == 1:
            return 1, line
        step = self._steps[0]
        found = [
            (channels, pitch)
            for channels in range(1, MOST_INTERLEAVED + 1)
            if self.channels % channels == 0
            for pitch in range(channels * line, channels * line + self._banks)
            if (step * pitch - self.cols) % self._banks == 0
        ]
        least = min((pitch / channels for channels, pitch in found), default=0.0)
        # Few channels, because every place in a plane costs a thread an address and conditions of its own.
        return next((lines for lines in found if lines[1] / lines[0] <= TOLERABLE_WASTE * least), (1, line))

    @property
    def _image_pitch(self) -> int:
        """Distance of two images in a plane."""
        least = self.in_rows * self._lines[1]
        return least + (self.rows * self.cols - least) % self._banks if self.images > 1 else least

    @property
    def plane(self) -> int:
        """Elements of the channels that lie side by side."""
        return self.images * self._image_pitch

    @property
    def planes(self) -> int:
        return self.channels // self._lines[0]

    @property
    def input_elements(self) -> int:
        """Input elements of one channel that a tile reads."""
        return self.images * self.in_rows * math.prod(self._phases)

    @property
    def elements(self) -> int:
        """Elements, or pairs of them, of the buffer of one tile and chunk; 0 if it is not staged."""
        return self.planes * self.plane if self.staged else 0

    def offset(self, c: Any, r: Any, s: Any) -> Any:
        """Where channel c of a chunk and kernel element (r, s) stand in the buffer, for pixel 0."""
        _, stride_w, dilation_h, dilation_w, _, _ = self._steps
        phase, shift = s * dilation_w % stride_w, s * dilation_w // stride_w
        channels, pitch = self._lines
        line = c % channels * math.prod(self._phases) + phase * self._phases[1] + shift
        return c // channels * self.plane + r * dilation_h * pitch + line

    def pixel(self, f: Any) -> Any:
        """Offset of pixel f of the tile."""
        image, row, col = f // (self.rows * self.cols), f // self.cols % self.rows, f % self.cols
        return image * self._image_pitch + row * (self._steps[0] * self._lines[1]) + col

    def source(self, e: Any, tile_row: Any, tile_col: Any) -> tuple[Any, Any, Any, Any, list[Any]]:
        """(image of the tile, channel of the chunk, input row, column, conditions to read it) of buffer element e."""
        workload = self.workload
        channels, pitch = self._lines
        phases, width = self._phases
        _, stride_w, _, _, unit_h, unit_w = self._steps
        image, place = e % self.plane // self._image_pitch, e % self.plane % self._image_pitch
        slot, line = place % pitch // (phases * width), place % pitch % (phases * width)
        top, left, _, _ = workload.padding
        row = tile_row * (self.rows * workload.stride[0]) + place // pitch * unit_h - top
        col = tile_col * (self.cols * workload.stride[1]) + (line % width * stride_w + line // width) * unit_w - left
        inside = [row >= 0, row < workload.h, col >= 0, col < workload.w]
        if pitch > channels * phases * width:
            inside.append(slot < channels)
        if self._image_pitch > self.in_rows * pitch:
            inside.append(place < self.in_rows * pitch)
        return image, e // self.plane * channels + slot, row, col, inside

    def out_index(self, i: Any, p: Any, q: Any) -> tuple[Any, ...]:
        """Tile (ti, ty, tx), pixel f, and which of a pair, of an output pixel."""
        if not self.staged:
            m = (i * self.workload.p + p) * self.workload.q + q
            word = m // self.pair
            return 0, 0, word // self.cols, word % self.cols, *([m % PAIR] if self.paired else [])
        pair = [i % PAIR] if self.paired else []
        i = i // self.pair
        f = (i % self.images * self.rows + p % self.rows) * self.cols + q % self.cols
        return i // self.images, p // self.rows, q // self.cols, f, *pair


def reads_own_pixel(workload: ConvWorkload) -> bool:
    """Every output pixel reads one input pixel, and there is no padding."""
    return (workload.r, workload.s) == (1, 1) and not any(workload.padding)


def pad_filter(weight: NDArray, tiling: PatternTiling) -> NDArray[np.float64]:
    """The filter as the expression reads it, padded by zeros to whole row groups and whole chunks."""
    k, c, _, _ = weight.shape
    rows, channels = tiling.row_groups * tiling.rows_per_group, tiling.chunks * tiling.channels
    return np.pad(weight.astype(np.float64), ((0, rows - k), (0, channels - c), (0, 0), (0, 0)))


def pattern_conv2d(tiling: PatternTiling) -> DirectConv:
    """The convolution of `tiling.workload` as a function of x, weight (padded), [bias], [residual], out.

    Blocks "tile" (only if staged), "part" and "out", in the shapes at the top of this file.
    """
    workload = tiling.workload
    n, dtype, groups = workload.n, workload.dtype, workload.groups
    groups_per_conv = tiling.row_groups // groups if groups > 1 else tiling.row_groups
    x = te.placeholder((n, workload.c, workload.h, workload.w), dtype, name="x")
    filter_shape = (tiling.row_groups * tiling.rows_per_group, tiling.chunks * tiling.channels, workload.r, workload.s)
    weight = te.placeholder(filter_shape, "float32", name="weight")

    def read_input(ti: Any, g: Any, ty: Any, tx: Any, chunk: Any, e: Any, *of_pair: Any) -> Any:
        image, channel, row, col, inside = tiling.source(e, ty, tx)
        image, channel = ti * tiling.images + image, chunk * tiling.channels + channel
        if of_pair:
            image = image * PAIR + of_pair[0]
        if n % (tiling.pair * tiling.images):
            inside.append(image < n)
        if tiling.chunks * tiling.channels > workload.c_per_group:
            inside.append(channel < workload.c_per_group)
        element = x[image, g * workload.c_per_group + channel, row, col]
        return tirx.if_then_else(tirx.all(*inside), element, tirx.const(0, dtype))

    tiles = tiling.grid
    pairs, pair_axes = ([PAIR], ["pair"]) if tiling.paired else ([], [])
    if tiling.staged:
        shape = (tiles[0], groups, *tiles[1:], tiling.chunks, tiling.elements)
        tile = te.compute((*shape, *pairs), read_input, name="tile", varargs_names=pair_axes)

    chunk = te.reduce_axis((0, tiling.chunks), name="chunk")
    c = te.reduce_axis((0, tiling.channels), name="c")
    r = te.reduce_axis((0, workload.r), name="r")
    s = te.reduce_axis((0, workload.s), name="s")

    def total(ti: Any, kg: Any, ty: Any, tx: Any, v: Any, f: Any, *of_pair: Any) -> Any:
        channel, g = chunk * tiling.channels + c, kg // groups_per_conv
        if tiling.staged:
            element = tile[(ti, g, ty, tx, chunk, tiling.offset(c, r, s) + tiling.pixel(f), *of_pair)]
        else:
            # A pixel beyond the output reads the last one there is: nobody stores its sum.
            q = workload.q // tiling.pair
            m = te.min(tx * tiling.cols + f, n * workload.p * q - 1)
            row, col = m // q % workload.p * workload.stride[0], m % q * workload.stride[1]
            if of_pair:
                col = col * PAIR + of_pair[0]
            element = x[m // (workload.p * q), g * workload.c_per_group + channel, row, col]
        product = weight[kg * tiling.rows_per_group + v, channel, r, s] * element.astype("float32")
        return te.sum(product, axis=[chunk, c, r, s])

    shape = (tiles[0], tiling.row_groups, *tiles[1:], tiling.rows_per_group, tiling.pixels)
    part = te.compute((*shape, *pairs), total, name="part", varargs_names=pair_axes)

    def summed(i: Any, k: Any, p: Any, q: Any) -> Any:
        ti, ty, tx, *f = tiling.out_index(i, p, q)
        return part[(ti, k // tiling.rows_per_group, ty, tx, k % tiling.rows_per_group, *f)]

    return DirectConv([x, weight, *output_stage(workload, summed)])
