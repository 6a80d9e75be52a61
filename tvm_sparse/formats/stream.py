"""One flat stream of (column, values) entries, chunk by chunk: what the compute reads, whatever the format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tvm_sparse.formats.checks import Array, FilterShape, check_count, check_total, run_positions, running_start


class Entries(NamedTuple):
    """The stored entries of a filter without padding, by row block, then by ascending column.

    A row block is V consecutive output channels; `block` and `column` are (n,), `values` is (n, V).
    """

    block: Array
    column: Array
    values: Array


#: Takes the (chunks, row_blocks) entry counts; gives the padded counts and, per chunk, the row blocks in storage order.
Layout = Callable[[Array], tuple[Array, Array]]


@dataclass(frozen=True, eq=False)
class FilterStream:
    """A filter cut into chunks of input channels, all entries in one stream.

    The ``counts[chunk, block]`` entries of a row block stand from ``starts[chunk, block]`` on, columns ascending.
    Padding entries have the value 0 and a column inside their chunk. A stream without any entry has one zero entry that
    no row owns, since TVM has no zero-size buffers.

    Attributes
    ----------
    values : (total, V), the dtype of the weights
    columns : (total,) int32, ``c_local * R * S + r * S + s``
    starts, counts : (chunks, row_blocks) int32; the row blocks in their original order
    vector : V, output channels in a row block; the last block may reach beyond K, with zeros
    channels_per_chunk : channels of one group in a chunk; the last chunk may have fewer
    shape : (K, C/groups, R, S) of the dense filter
    """

    values: Array
    columns: Array
    starts: Array
    counts: Array
    vector: int
    channels_per_chunk: int
    shape: FilterShape

    def to_dense(self) -> Array:
        """The filter as a (K, C/groups, R, S) array."""
        k, c, r, s = self.shape
        _chunks, blocks = self.counts.shape
        at = run_positions(self.starts.ravel(), self.counts.ravel())
        block = np.repeat(np.broadcast_to(np.arange(blocks), self.counts.shape).ravel(), self.counts.ravel())
        dense = np.zeros((blocks, c * r * s, self.vector), self.values.dtype)
        # Added, as the compute does: a padding entry repeats the column of a true one.
        np.add.at(dense, (block, self.columns[at]), self.values[at])
        return dense.transpose(0, 2, 1).reshape(blocks * self.vector, c, r, s)[:k]


def pack_stream(
    entries: Entries, shape: FilterShape, channels_per_chunk: int, pad_to: int, layout: Layout
) -> FilterStream:
    """Lay `entries` out chunk by chunk, inside a chunk in the order and with the padding `layout` asks for.

    Parameters
    ----------
    channels_per_chunk : channels of one group in a chunk, at least 1; C/groups or more gives a single chunk
    pad_to : every count becomes a multiple of this
    """
    channels_per_chunk = check_count("channels_per_chunk", channels_per_chunk)
    pad_to = check_count("pad_to", pad_to)
    k, c, r, s = shape
    vector = entries.values.shape[1]
    blocks, chunks = -(-k // vector), -(-c // channels_per_chunk)
    columns_per_chunk = min(channels_per_chunk, c) * r * s

    segment = entries.block * chunks + entries.column // columns_per_chunk
    lengths = np.bincount(segment, minlength=blocks * chunks)
    true_counts = lengths.reshape(blocks, chunks).T
    widths, order = layout(true_counts)
    widths = -(-widths // pad_to) * pad_to

    ordered_widths = np.take_along_axis(widths, order, axis=1)
    ordered_starts = running_start(ordered_widths.ravel())
    total = int(ordered_starts[-1])
    check_total(total * vector, shape)
    starts = np.empty_like(widths)
    np.put_along_axis(starts, order, ordered_starts[:-1].reshape(chunks, blocks), axis=1)

    last_column = np.repeat(np.arange(chunks) * columns_per_chunk, blocks).reshape(chunks, blocks)
    filled = true_counts > 0
    last_column[filled] = entries.column[(np.cumsum(lengths) - 1).reshape(blocks, chunks).T[filled]]
    columns = np.zeros(max(total, 1), np.int32)
    columns[:total] = np.repeat(np.take_along_axis(last_column, order, axis=1).ravel(), ordered_widths.ravel())
    values = np.zeros((max(total, 1), vector), entries.values.dtype)

    at = run_positions(starts.T.ravel(), lengths)
    columns[at] = entries.column
    values[at] = entries.values
    starts, widths = starts.astype(np.int32), widths.astype(np.int32)
    return FilterStream(values, columns, starts, widths, vector, channels_per_chunk, shape)
