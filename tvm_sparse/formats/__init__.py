"""How the nonzeros of a convolution filter are laid out. Pure numpy.

Filters are OIHW arrays (K, C/groups, R, S); a 1-D filter comes as (K, C/groups, 1, S). The column of a weight within
its row (output channel) is ``c_local * R * S + r * S + s``.
"""

from __future__ import annotations

from tvm_sparse.formats.base import RowStats, SparseFilter
from tvm_sparse.formats.column_vector import ColumnVectorFilter
from tvm_sparse.formats.csr import CSRFilter
from tvm_sparse.formats.sliced_ell import SlicedELLFilter
from tvm_sparse.formats.stream import FilterStream

__all__ = ["CSRFilter", "ColumnVectorFilter", "FilterStream", "RowStats", "SlicedELLFilter", "SparseFilter"]
