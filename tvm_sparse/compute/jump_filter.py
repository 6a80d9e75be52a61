"""A filter as programs: what the warps of `cuda_jump` read, one instruction after the other, and jump by.

A warp sums `rows` output channels at once. Its program for a chunk of channels is a list of instructions of 8 bytes,
a 32-bit word and a code:

    load      word = byte offset of a window       x[i] = tile[word + loads[i]] for all loads of a window
    (tap, v)  word = a nonzero, in float32         part[v, f] += word * x[place of pixel f at this tap]
    end

The code of an instruction stands with the word of the one in front of it, so that a warp knows early where to jump; the
first one's stands with a word that nobody reads.

A window is the taps of one channel, some or all, whose inputs a thread loads together: pixels of neighbouring rows
share most of the input of a column's taps, and all output channels share all of it. So what a load brings is multiplied
by every nonzero of the window, (taps of the window x rows x density) of them in the mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from tvm_sparse.compute.packed_filter import ROW_START, segment_length
from tvm_sparse.compute.warp_tiling import WarpTiling
from tvm_sparse.errors import InputError

#: Bytes of an element of the input, and 32-bit words of an instruction.
ELEMENT, WORDS = 4, 2
#: Taps of a window: each is a piece of code for every output channel of a warp.
MOST_TAPS = 24
#: Instructions of a program beside its nonzeros and loads: where its first code stands, and the last one's word.
FRAME = 2


@dataclass(frozen=True)
class Window:
    """Which taps of a channel a thread loads together, and what it loads for them.

    windows : for every tap r·s + s, which window of its channel it is in
    taps : for every tap, which one of its window
    loads : (loads,) elements from the pixel of lane and window to what is loaded
    places : (taps of a window, pixels of a thread), which load the pixel is multiplied by
    """

    windows: tuple[int, ...]
    taps: tuple[int, ...]
    loads: tuple[int, ...]
    places: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(tiling: WarpTiling) -> Window:
        """The window of a tiling with the fewest loads a channel, of those the one of the fewest taps."""
        return _window(tiling)

    @classmethod
    def along(cls, tiling: WarpTiling, rows: int, cols: int) -> Window:
        """The taps of `rows` rows and `cols` columns of the kernel together, each all of them or 1."""
        workload = tiling.workload
        taps = np.arange(workload.r * workload.s)
        row, col = taps // workload.s, taps % workload.s
        windows = row // rows * (workload.s // cols) + col // cols
        own = row % rows * cols + col % cols
        columns = tiling.offsets(taps.astype(np.int32))[: rows * workload.s].reshape(rows, -1)[:, :cols].ravel()
        pixels = [int(tiling.pixel_address((own, 0))) for own in range(tiling.pixel_shape[0])]
        addresses = (columns - columns[0])[:, None] + (np.array(pixels) - pixels[0])[None, :]
        loads, places = np.unique(addresses, return_inverse=True)
        return cls(
            tuple(windows.tolist()),
            tuple(own.tolist()),
            tuple(loads.tolist()),
            tuple(map(tuple, places.reshape(addresses.shape).tolist())),
        )

    @property
    def a_channel(self) -> int:
        """Windows of a channel."""
        return max(self.windows) + 1

    def first_taps(self) -> NDArray[np.int32]:
        """The tap that each window begins with, which its offset is that of."""
        return np.array([self.windows.index(window) for window in range(self.a_channel)], np.int32)


@lru_cache(maxsize=1024)
def _window(tiling: WarpTiling) -> Window:
    workload = tiling.workload
    options = dict.fromkeys(((1, 1), (workload.r, 1), (1, workload.s)))
    windows = [Window.along(tiling, *axes) for axes in options if math.prod(axes) <= MOST_TAPS]
    return min(windows, key=lambda window: (window.a_channel * len(window.loads), len(window.places)))


@dataclass(frozen=True)
class JumpFilter:
    """The programs of all row blocks and chunks, in segments of the row blocks that a block of threads copies together.

    program (chunks, segments, instructions, 2) int32 : word of an instruction, code (see Codes) of the next one
    rows (chunks, row blocks) int32 : where in its segment a program starts, times ROW_START, plus its length
    """

    program: NDArray[np.int32]
    rows: NDArray[np.int32]
    vector: int
    pad_to: int = 1

    @property
    def arrays(self) -> tuple[NDArray, ...]:
        """In the order in which the kernel takes them, behind x."""
        return self.program, self.rows

    @property
    def row_blocks(self) -> int:
        return self.rows.shape[1]

    @property
    def together(self) -> int:
        """Row blocks of a segment."""
        return self.row_blocks // self.program.shape[1]

    @property
    def entries(self) -> int:
        """Instructions of a segment."""
        return self.program.shape[2]

    @cached_property
    def longest_row(self) -> int:
        """Instructions of the longest program."""
        return int((self.rows % ROW_START).max())

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)


@dataclass(frozen=True)
class Codes:
    """The codes of instructions: `vector` for every tap of a window, then load and end."""

    taps: int
    vector: int

    @property
    def load(self) -> int:
        return self.taps * self.vector

    @property
    def end(self) -> int:
        return self.load + 1


def jump_filter(weight: NDArray, tiling: WarpTiling, vector: int, together: int) -> JumpFilter:
    """Write the programs of a filter (k, c/groups, r, s) for warps of `vector` output channels, `together` a block.

    Raises
    ------
    InputError
        When row blocks reach over two groups, or a segment is longer than a program's start can say.
    """
    workload, window = tiling.workload, Window.of(tiling)
    if workload.groups > 1 and workload.k_per_group % (vector * together):
        raise InputError(f"{workload}: blocks of {vector * together} output channels reach over two groups")
    codes = Codes(len(window.places), vector)
    blocks = -(-workload.k // (vector * together)) * together
    channels, chunks = tiling.channels, tiling.chunks

    k, c, row, col = np.nonzero(weight)
    tap = row * workload.s + col
    program = c // channels * blocks + k // vector
    in_channel = np.array(window.windows)[tap]
    in_program = c % channels * window.a_channel + in_channel
    code = np.array(window.taps)[tap] * vector + k % vector
    order = np.lexsort((code, in_program, program))
    program, in_program, code = program[order], in_program[order], code[order]
    values = weight[k, c, row, col][order]

    opens = np.ones(len(order), bool)
    opens[1:] = (program[1:] != program[:-1]) | (in_program[1:] != in_program[:-1])
    loads = np.bincount(program[opens], minlength=chunks * blocks)
    nonzeros = np.bincount(program, minlength=chunks * blocks)
    lengths = (nonzeros + loads + FRAME).reshape(chunks, blocks)

    starts = np.zeros_like(lengths)
    ends = lengths.reshape(chunks, -1, together).cumsum(axis=2)
    starts.reshape(ends.shape)[:, :, 1:] = ends[:, :, :-1]
    most = int(ends.max())
    if most >= ROW_START // 2:
        raise InputError(f"{workload}: {most} instructions of a chunk staged at once; take fewer channels a chunk")
    entries = segment_length(most)

    segments = np.zeros((chunks, blocks // together, entries, WORDS), np.int32)
    segments[..., 1] = codes.end
    flat = segments.reshape(-1, WORDS)
    begins = (np.arange(chunks * blocks) // together * entries).reshape(starts.shape) + starts
    # Behind the instructions of all earlier nonzeros and windows of its program, and its own window's load.
    earlier = np.cumsum(nonzeros + loads) - (nonzeros + loads)
    place = 1 + np.arange(len(order)) + np.cumsum(opens) - earlier[program] + begins.ravel()[program]
    flat[place, 0] = np.ascontiguousarray(values, np.float32).view(np.int32)
    flat[place, 1] = code
    first = in_program[opens] // window.a_channel * len(window.windows)
    columns = first + window.first_taps()[in_program[opens] % window.a_channel]
    flat[place[opens] - 1, 0] = tiling.offsets(columns.astype(np.int32)) * ELEMENT
    flat[place[opens] - 1, 1] = codes.load
    flat[:-1, 1] = flat[1:, 1].copy()
    return JumpFilter(segments, (starts * ROW_START + lengths).astype(np.int32), vector)
