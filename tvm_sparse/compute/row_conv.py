"""Direct convolution to a single output pixel: a sparse matrix times images, as of a linear layer.

    tile (n, chunk, e)     the images in chunks, as they lie
    part (n, k, lane)      Σ over the chunks and the nonzeros of row k that stand in this lane
    sum  (n, k)            Σ over the lanes
    out  (n, k, 1, 1)      activation(sum + bias + residual)

There are no pixels to share a weight, so the lanes of a warp sit on neighbouring nonzeros: these are loaded as they
lie, and the input is gathered. A row of a chunk is whole steps of lanes x unroll nonzeros; padding has the value 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx

from tvm_sparse.compute.direct_conv import DirectConv
from tvm_sparse.compute.epilogue import output_stage
from tvm_sparse.errors import InputError
from tvm_sparse.workload import ELEMENT_BYTES, ConvWorkload

BANKS, BANK_BYTES = 32, 4
#: Chunks are this many elements or a multiple, so that they can be copied several elements at a time.
CHUNK_MULTIPLE = 8


@dataclass(frozen=True)
class RowTiling:
    """How rows are cut: `lanes` nonzeros side by side, `unroll` of these a step, the input in `chunks`.

    Raises
    ------
    InputError
        When the layer has more than one output pixel, or a size is less than 1.
    """

    workload: ConvWorkload = field(repr=False)
    lanes: int
    unroll: int
    chunks: int

    def __post_init__(self) -> None:
        if self.workload.p * self.workload.q != 1:
            raise InputError(f"{self.workload}: rows are for layers of a single output pixel")
        if min(self.lanes, self.unroll, self.chunks) < 1:
            raise InputError(f"{self}: every size is 1 or more")

    @property
    def step(self) -> int:
        """Nonzeros of a step."""
        return self.lanes * self.unroll

    @property
    def size(self) -> int:
        """Elements of an image."""
        return self.workload.c * self.workload.h * self.workload.w

    @property
    def elements(self) -> int:
        """Elements of a chunk of an image."""
        return -(-self.size // (self.chunks * CHUNK_MULTIPLE)) * CHUNK_MULTIPLE


@dataclass(frozen=True)
class RowFilter:
    """values (entries, 1), offsets (entries,) into a chunk, starts and counts (chunks, k) of the rows, in steps."""

    values: NDArray[np.floating]
    offsets: NDArray[np.integer]
    starts: NDArray[np.int32]
    counts: NDArray[np.int32]

    @property
    def arrays(self) -> tuple[NDArray, ...]:
        """In the order in which the kernel takes them, behind x."""
        return self.values, self.offsets, self.starts, self.counts

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)


def pack_rows(weight: NDArray, tiling: RowTiling) -> RowFilter:
    """Pack a filter (k, c/groups, r, s); what reads the padding is left out.

    Of a row's nonzeros in a chunk, neighbours are in different memory banks of the input as far as there are any.
    """
    workload, k = tiling.workload, len(weight)
    rows, columns = np.nonzero(weight.reshape(k, -1))
    values = weight.reshape(k, -1)[rows, columns]
    channel, tap = np.divmod(columns, workload.r * workload.s)
    row = tap // workload.s * workload.dilation[0] - workload.padding[0]
    col = tap % workload.s * workload.dilation[1] - workload.padding[1]
    channel += rows // workload.k_per_group * workload.c_per_group
    inside = (row >= 0) & (row < workload.h) & (col >= 0) & (col < workload.w)
    at = ((channel * workload.h + row) * workload.w + col)[inside]
    rows, values = rows[inside], values[inside]

    lists, offsets = at // tiling.elements * k + rows, at % tiling.elements
    bank = offsets * ELEMENT_BYTES[workload.dtype] // BANK_BYTES % BANKS
    order = np.argsort(lists * BANKS + bank, kind="stable")
    turn = _place_in_run(lists[order] * BANKS + bank[order])
    turns = 1 + int(turn.max(initial=0))
    order = order[np.argsort((lists[order] * turns + turn) * BANKS + bank[order], kind="stable")]

    counts = -(-np.bincount(lists, minlength=tiling.chunks * k) // tiling.step)
    starts = np.cumsum(counts) - counts
    entries = max(1, int(counts.sum())) * tiling.step
    to = starts[lists[order]] * tiling.step + _place_in_run(lists[order])
    packed = np.zeros((entries, 1), workload.dtype)
    packed[to, 0] = values[order]
    places: NDArray[np.integer] = np.zeros(entries, np.uint16 if tiling.elements <= 1 << 16 else np.int32)
    places[to] = offsets[order]
    in_chunks = [steps.astype(np.int32).reshape(tiling.chunks, k) for steps in (starts, counts)]
    return RowFilter(packed, places, *in_chunks)


def _place_in_run(keys: NDArray) -> NDArray[np.int64]:
    """For sorted keys, how many equal ones stand before each."""
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    return np.arange(len(keys)) - np.repeat(first, np.diff(first, append=len(keys)))


def row_conv2d(tiling: RowTiling, packed: RowFilter) -> DirectConv:
    """The convolution of `tiling.workload` with a filter packed like `packed`; blocks as at the top of this file."""
    workload, elements = tiling.workload, tiling.elements
    n, k, h, w = workload.n, workload.k, workload.h, workload.w
    x = te.placeholder((n, workload.c, h, w), workload.dtype, name="x")
    values, offsets, starts, counts = (
        te.placeholder(array.shape, str(array.dtype), name=name)
        for array, name in zip(packed.arrays, ("values", "offsets", "starts", "counts"), strict=True)
    )

    def read_input(i: Any, chunk: Any, e: Any) -> Any:
        at = chunk * elements + e
        element = x[i, at // (h * w), at // w % h, at % w]
        if tiling.chunks * elements == tiling.size:
            return element
        return tirx.if_then_else(at < tiling.size, element, tirx.const(0, workload.dtype))

    tile = te.compute((n, tiling.chunks, elements), read_input, name="tile")
    chunk = te.reduce_axis((0, tiling.chunks), name="chunk")
    step = te.reduce_axis((0, max(1, int(packed.counts.max(initial=0)))), name="step")
    again = te.reduce_axis((0, tiling.unroll), name="again")

    def partial_sum(i: Any, row: Any, lane: Any) -> Any:
        at = (starts[chunk, row] + step) * tiling.step + again * tiling.lanes + lane
        element = tile[i, chunk, offsets[at].astype("int32")]
        product = values[at, 0].astype("float32") * element.astype("float32")
        term = tirx.if_then_else(step < counts[chunk, row], product, tirx.const(0, "float32"))
        return te.sum(term, axis=[chunk, step, again])

    part = te.compute((n, k, tiling.lanes), partial_sum, name="part")
    lane = te.reduce_axis((0, tiling.lanes), name="lane")
    total = te.compute((n, k), lambda i, row: te.sum(part[i, row, lane], axis=lane), name="sum")
    return DirectConv([x, values, offsets, starts, counts, *output_stage(workload, lambda i, k, p, q: total[i, k])])
