"""Sliced ELLPACK: rows sorted by length, grouped in slices, each slice padded to its longest row.

Kreutzer et al., "A unified sparse matrix data format for efficient general sparse matrix-vector multiplication on
modern processors with wide SIMD units", SIAM J. Sci. Comput. 36(5), 2014; here with one sorting scope over all rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_sparse.formats.base import SparseFilter
from tvm_sparse.formats.checks import Array, check_count, check_filter, run_positions, running_start
from tvm_sparse.formats.stream import Entries


@dataclass(frozen=True, eq=False)
class SlicedELLFilter(SparseFilter):
    """Slice i holds `slice_height` rows (the last one may hold fewer), row after row, all of one width.

    Padding entries have the value 0 and repeat the row's last column (0 in an empty row).

    Attributes
    ----------
    slice_starts : (slices + 1,) int32, offsets into `values` (stored,) and `columns` (stored,)
    lengths : (K,) int32, nonzeros of the rows in sorted order, longest first
    permutation : (K,) int32, the original row at each sorted place; rows of equal length keep their order
    slice_height : rows in a slice
    """

    slice_starts: Array
    lengths: Array
    permutation: Array
    slice_height: int

    @classmethod
    def from_dense(cls, weight: Any, slice_height: int) -> SlicedELLFilter:
        """Take the nonzeros of a (K, C/groups, R, S) filter.

        Raises
        ------
        InputError
            Not a real-valued array of four nonzero extents, or a slice height below 1.
        ModelError
            NaN or Inf among the weights.
        """
        slice_height = check_count("slice_height", slice_height)
        matrix, shape = check_filter(weight)
        row, column = np.nonzero(matrix)
        counts = np.bincount(row, minlength=shape[0])
        widths, order = sliced_layout(counts[None], slice_height)
        permutation = order[0]
        lengths, row_widths = counts[permutation], widths[0, permutation]
        row_starts = running_start(row_widths)
        slice_starts = np.append(row_starts[:-1:slice_height], row_starts[-1])

        last = running_start(counts)[1:] - 1
        last_column = np.zeros(shape[0], np.int32)
        last_column[counts > 0] = column[last[counts > 0]]
        columns = np.repeat(last_column[permutation], row_widths)
        values = np.zeros(columns.size, matrix.dtype)
        starts = np.empty(shape[0], np.int64)
        starts[permutation] = row_starts[:-1]
        at = run_positions(starts, counts)
        columns[at], values[at] = column, matrix[row, column]
        return cls(
            shape=shape,
            values=values,
            columns=columns,
            slice_starts=slice_starts.astype(np.int32),
            lengths=lengths.astype(np.int32),
            permutation=permutation.astype(np.int32),
            slice_height=slice_height,
        )

    @property
    def widths(self) -> Array:
        """(slices,) entries per row in each slice."""
        places = np.arange(self.slice_starts.size - 1) * self.slice_height
        return np.diff(self.slice_starts) // np.minimum(self.slice_height, self.shape[0] - places)

    def entries(self) -> Entries:
        row_widths = self.widths[np.arange(self.shape[0]) // self.slice_height]
        starts, lengths = np.empty_like(self.lengths), np.empty_like(self.lengths)
        starts[self.permutation] = running_start(row_widths)[:-1]
        lengths[self.permutation] = self.lengths
        at = run_positions(starts, lengths)
        return Entries(np.repeat(np.arange(self.shape[0]), lengths), self.columns[at], self.values[at, None])

    def _layout(self, counts: Array) -> tuple[Array, Array]:
        return sliced_layout(counts, self.slice_height)


def sliced_layout(counts: Array, slice_height: int) -> tuple[Array, Array]:
    """Sort the rows of every chunk by length and pad each slice to its longest row.

    Parameters
    ----------
    counts : (chunks, rows) true lengths

    Returns
    -------
    widths : (chunks, rows) padded lengths, in the original order of the rows
    order : (chunks, rows) the original row at each sorted place, longest first, stable
    """
    order = np.argsort(-counts, axis=1, kind="stable")
    ordered = np.take_along_axis(counts, order, axis=1)
    # Longest first, so the first row of a slice is its longest.
    widths = np.empty_like(counts)
    first_of_slice = np.arange(counts.shape[1]) // slice_height * slice_height
    np.put_along_axis(widths, order, ordered[:, first_of_slice], axis=1)
    return widths, order
