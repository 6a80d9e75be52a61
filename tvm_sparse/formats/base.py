"""What the sparse layouts of a filter have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields

import numpy as np

from tvm_sparse.formats.checks import Array, FilterShape
from tvm_sparse.formats.stream import Entries, FilterStream, pack_stream


@dataclass(frozen=True)
class RowStats:
    """Nonzeros per output channel; `empty` counts the channels that have none."""

    min: int
    median: float
    mean: float
    max: int
    empty: int


@dataclass(frozen=True, eq=False)
class SparseFilter(ABC):
    """A (K, C/groups, R, S) filter by its nonzeros.

    Attributes
    ----------
    shape : (K, C/groups, R, S)
    values : the stored weights, in the dtype of the dense filter
    columns : int32, ``c_local * R * S + r * S + s`` of every stored entry
    """

    shape: FilterShape
    values: Array
    columns: Array

    @abstractmethod
    def entries(self) -> Entries:
        """The entries without padding, by row block, then by ascending column."""

    @abstractmethod
    def _layout(self, counts: Array) -> tuple[Array, Array]:
        """Padded counts and storage order of the row blocks, see `stream.Layout`."""

    @property
    def dtype(self) -> np.dtype:
        return self.values.dtype

    @property
    def nnz(self) -> int:
        """Weights that are not zero."""
        return int(np.count_nonzero(self.values))

    @property
    def stored(self) -> int:
        """Stored weights, padding zeros included."""
        return self.values.size

    @property
    def density(self) -> float:
        """nnz over the size of the dense filter."""
        return self.nnz / math.prod(self.shape)

    @property
    def sparsity(self) -> float:
        """Zeros over the size of the dense filter."""
        return 1.0 - self.density

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays of the format."""
        parts = (getattr(self, field.name) for field in fields(self))
        return sum(part.nbytes for part in parts if isinstance(part, np.ndarray))

    def to_dense(self) -> Array:
        """The filter as a (K, C/groups, R, S) array; the inverse of `from_dense` (a negative zero comes back as 0)."""
        block, column, values = self.entries()
        k, c, r, s = self.shape
        vector = values.shape[1]
        dense = np.zeros((-(-k // vector), vector, c * r * s), self.dtype)
        dense[block, :, column] = values
        return dense.reshape(-1, c, r, s)[:k]

    def row_stats(self) -> RowStats:
        """Nonzeros per output channel."""
        block, _column, values = self.entries()
        k, vector = self.shape[0], values.shape[1]
        lanes = [np.bincount(block[values[:, v] != 0], minlength=-(-k // vector)) for v in range(vector)]
        lengths = np.stack(lanes, axis=1).ravel()[:k]
        return RowStats(
            min=int(lengths.min()),
            median=float(np.median(lengths)),
            mean=float(lengths.mean()),
            max=int(lengths.max()),
            empty=int(np.count_nonzero(lengths == 0)),
        )

    def stream(self, channels_per_chunk: int, pad_to: int = 1) -> FilterStream:
        """All entries in one stream, chunk by chunk of input channels.

        Parameters
        ----------
        channels_per_chunk : channels of one group in a chunk, at least 1
        pad_to : every (chunk, row block) count becomes a multiple of this

        Raises
        ------
        InputError
            An argument below 1, or more entries than int32 can index.
        """
        return pack_stream(self.entries(), self.shape, channels_per_chunk, pad_to, self._layout)


def unpadded_layout(counts: Array) -> tuple[Array, Array]:
    """Row blocks in their own order, no padding."""
    return counts, np.broadcast_to(np.arange(counts.shape[1]), counts.shape)
