"""Compressed sparse rows of the (K, C/groups * R * S) filter matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_sparse.formats.base import SparseFilter, unpadded_layout
from tvm_sparse.formats.checks import Array, check_filter, running_start
from tvm_sparse.formats.stream import Entries


@dataclass(frozen=True, eq=False)
class CSRFilter(SparseFilter):
    """Row k has the entries ``indptr[k]`` to ``indptr[k + 1]`` of `values` (nnz,) and `columns` (nnz,).

    Attributes
    ----------
    indptr : (K + 1,) int32
    """

    indptr: Array

    @classmethod
    def from_dense(cls, weight: Any) -> CSRFilter:
        """Take the nonzeros of a (K, C/groups, R, S) filter.

        Raises
        ------
        InputError
            Not a real-valued array of four nonzero extents.
        ModelError
            NaN or Inf among the weights.
        """
        matrix, shape = check_filter(weight)
        row, column = np.nonzero(matrix)
        indptr = running_start(np.bincount(row, minlength=shape[0])).astype(np.int32)
        return cls(shape, matrix[row, column], column.astype(np.int32), indptr)

    def entries(self) -> Entries:
        row = np.repeat(np.arange(self.shape[0]), np.diff(self.indptr))
        return Entries(row, self.columns, self.values[:, None])

    def _layout(self, counts: Array) -> tuple[Array, Array]:
        return unpadded_layout(counts)
