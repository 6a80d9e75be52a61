"""Column vectors: V consecutive output channels share the union of their columns.

Chen et al., "Efficient tensor core-based GPU kernels for structured sparsity under reduced precision", SC 2021 (their
column-vector sparse encoding).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_sparse.formats.base import SparseFilter, unpadded_layout
from tvm_sparse.formats.checks import Array, check_count, check_filter, check_total, running_start
from tvm_sparse.formats.stream import Entries


@dataclass(frozen=True, eq=False)
class ColumnVectorFilter(SparseFilter):
    """Block b, the output channels bV to bV + V, has the vectors ``indptr[b]`` to ``indptr[b + 1]``.

    Where V does not divide K the last block ends in zero rows. Blocks do not heed groups: where V does not divide
    K/groups, a block holds channels of two groups.

    Attributes
    ----------
    values : (n_vectors, V)
    columns : (n_vectors,) int32
    indptr : (ceil(K / V) + 1,) int32
    vector : V; 1 is the unstructured case
    """

    indptr: Array
    vector: int

    @classmethod
    def from_dense(cls, weight: Any, vector: int) -> ColumnVectorFilter:
        """Take the vectors of a (K, C/groups, R, S) filter that hold a nonzero.

        Raises
        ------
        InputError
            Not a real-valued array of four nonzero extents, or a vector length below 1.
        ModelError
            NaN or Inf among the weights.
        """
        vector = check_count("vector", vector)
        matrix, shape = check_filter(weight)
        k = shape[0]
        blocks = -(-k // vector)
        check_total(blocks * vector * matrix.shape[1], shape)
        if k % vector:
            matrix = np.concatenate([matrix, np.zeros((blocks * vector - k, matrix.shape[1]), matrix.dtype)])
        stacked = matrix.reshape(blocks, vector, -1)
        block, column = np.nonzero((stacked != 0).any(axis=1))
        indptr = running_start(np.bincount(block, minlength=blocks)).astype(np.int32)
        return cls(shape, stacked[block, :, column], column.astype(np.int32), indptr, vector)

    def entries(self) -> Entries:
        block = np.repeat(np.arange(self.indptr.size - 1), np.diff(self.indptr))
        return Entries(block, self.columns, self.values)

    def _layout(self, counts: Array) -> tuple[Array, Array]:
        return unpadded_layout(counts)
