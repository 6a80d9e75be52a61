"""A filter's stream with its columns stretched into the offsets of a tiling: the arrays a kernel reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tvm_sparse.compute.geometry import Tiling
from tvm_sparse.compute.pair_tiling import PairTiling
from tvm_sparse.errors import InputError
from tvm_sparse.formats import FilterStream
from tvm_sparse.formats.checks import run_positions

#: A row of a staged filter is one int32: its start times this, plus its length.
ROW_START = 1 << 16
#: Segments are this many entries or a multiple, so that they can be copied 16 bytes at a time.
SEGMENT_MULTIPLE = 8


@dataclass(frozen=True)
class PackedFilter:
    """The arrays a kernel reads: values (total, vector), offsets (total,), starts and counts (chunks, row blocks).

    `starts` and `counts` are in steps of `pad_to` nonzeros, so that a loop over steps needs no tail.
    """

    values: NDArray[np.floating]
    offsets: NDArray[np.int32]
    starts: NDArray[np.int32]
    counts: NDArray[np.int32]
    pad_to: int

    @property
    def arrays(self) -> tuple[NDArray, ...]:
        """In the order in which the kernel takes them, behind x."""
        return self.values, self.offsets, self.starts, self.counts

    @property
    def vector(self) -> int:
        return self.values.shape[1]

    @property
    def row_blocks(self) -> int:
        return self.counts.shape[1]

    @property
    def longest_row(self) -> int:
        """Nonzeros of the longest row of a chunk, padding included; at least one step."""
        return max(1, int(self.counts.max(initial=0))) * self.pad_to

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)


@dataclass(frozen=True)
class StagedFilter:
    """A packed filter for blocks of threads that copy the entries of `together` row blocks and a chunk at a time.

    values (chunks, groups of row blocks, entries, vector) and offsets (chunks, groups, entries) hold every such segment
    at a fixed place, so that no address has to be read before a copy can start. rows (chunks, row blocks) has where in
    its segment a row block starts, times ROW_START, plus its length, both in steps of `pad_to` entries.
    """

    values: NDArray[np.floating]
    offsets: NDArray[np.int32]
    rows: NDArray[np.int32]
    pad_to: int
    #: The output channel of every row, (k,), of a filter whose rows were put into another order.
    order: NDArray[np.int32] | None = None

    @property
    def arrays(self) -> tuple[NDArray, ...]:
        """In the order in which the kernel takes them, behind x."""
        arrays = (self.values, self.offsets, self.rows)
        return arrays if self.order is None else (*arrays, self.order)

    @property
    def vector(self) -> int:
        return self.values.shape[3]

    @property
    def row_blocks(self) -> int:
        return self.rows.shape[1]

    @property
    def together(self) -> int:
        """Row blocks of a segment."""
        return self.row_blocks // self.values.shape[1]

    @property
    def entries(self) -> int:
        """Entries of a segment."""
        return self.offsets.shape[-1]

    @property
    def longest_row(self) -> int:
        """Nonzeros of the longest row of a chunk, padding included; at least one step."""
        return max(1, int((self.rows % ROW_START).max(initial=0))) * self.pad_to

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)


def pack_filter(
    stream: FilterStream, tiling: Tiling | PairTiling, pad_to: int = 1, block_multiple: int = 1
) -> PackedFilter:
    """Stretch the columns of a stream into offsets of this tiling.

    Parameters
    ----------
    pad_to : what the stream was padded to
    block_multiple : empty row blocks are added behind the last one up to a multiple of this

    Raises
    ------
    InputError
        When the stream was cut into other chunks than the tiling, or a row block reaches over two groups.
    """
    workload = tiling.workload
    if stream.channels_per_chunk != tiling.channels:
        raise InputError(
            f"{workload}: stream in chunks of {stream.channels_per_chunk} channels, {tiling} needs its own"
        )
    if workload.groups > 1 and workload.k_per_group % stream.vector:
        raise InputError(f"{workload}: vectors of {stream.vector} output channels reach over two groups")
    chunks, row_blocks = stream.starts.shape
    pad = ((0, tiling.chunks - chunks), (0, -row_blocks % block_multiple))
    return PackedFilter(
        values=np.ascontiguousarray(stream.values, workload.dtype),
        offsets=tiling.offsets(stream.columns),
        starts=np.ascontiguousarray(np.pad(stream.starts // pad_to, pad), np.int32),
        counts=np.ascontiguousarray(np.pad(stream.counts // pad_to, pad), np.int32),
        pad_to=pad_to,
    )


def segment_length(entries: int) -> int:
    """Entries of a segment that has room for so many."""
    return -(-entries // SEGMENT_MULTIPLE) * SEGMENT_MULTIPLE


def stage_filter(packed: PackedFilter, together: int, order: NDArray[np.int32] | None = None) -> StagedFilter:
    """Lay a packed filter out in segments of `together` row blocks, a divisor of their number.

    `order` says of which output channels the rows are, if they were reordered before packing.

    Raises
    ------
    InputError
        When a segment is longer than a row's start can say.
    """
    pad_to, counts = packed.pad_to, packed.counts
    chunks, row_blocks = counts.shape
    starts = np.zeros_like(counts)
    in_segments = counts.reshape(chunks, -1, together).cumsum(axis=2, dtype=np.int32)
    starts.reshape(in_segments.shape)[:, :, 1:] = in_segments[:, :, :-1]
    steps = int(in_segments[:, :, -1].max(initial=0))
    if steps >= ROW_START // 2:
        raise InputError(f"{steps * pad_to} nonzeros of a chunk staged at once; take fewer channels a chunk")
    entries = segment_length(max(1, steps) * pad_to)
    segments = (chunks, row_blocks // together, entries)
    values = np.zeros((*segments, packed.vector), packed.values.dtype)
    offsets = np.zeros(segments, np.int32)
    lengths = counts.ravel() * pad_to
    block = np.arange(chunks * row_blocks)
    to = np.repeat(block // together * entries + starts.ravel() * pad_to, lengths) + run_positions(
        np.zeros_like(block), lengths
    )
    taken = run_positions(packed.starts.ravel() * pad_to, lengths)
    values.reshape(-1, packed.vector)[to] = packed.values[taken]
    offsets.reshape(-1)[to] = packed.offsets[taken]
    return StagedFilter(values, offsets, starts * ROW_START + counts, pad_to, order)
