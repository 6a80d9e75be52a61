"""Which rows of a filter stand together: published filters have rows four times as long as the median.

A block of threads waits at every chunk for its slowest warp, and the last block for none. So rows are dealt out to
warps, longest first, there and back again, where that helps; where each row belongs is looked up when it is stored.
"""

from __future__ import annotations

import numpy as np
import tvm_ffi
from numpy.typing import NDArray
from tvm import s_tir, tirx

from tvm_sparse.schedules.blocks import changed_block
from tvm_sparse.schedules.storage import whole

#: The longest block, or warp, must lose this share of its nonzeros, or what is looked up costs more than it saves.
LEAST_BLOCK_GAIN, LEAST_WARP_GAIN = 0.04, 0.3


def balanced_order(row_nnz: NDArray[np.integer], per_warp: int, warps: int) -> NDArray[np.int32] | None:
    """The rows in an order in which warps, `per_warp` rows each, and blocks of `warps` have alike many nonzeros.

    Returns
    -------
    (rows,) int32, or None where the rows are balanced well enough as they are.
    """
    rows = len(row_nnz)
    bins = -(-rows // per_warp)
    longest_first = np.argsort(-row_nnz, kind="stable")
    # There and back again over the warps; a last warp that is not full takes no more than it holds.
    dealt: list[list[int]] = [[] for _ in range(bins)]
    room = [min(per_warp, rows - warp * per_warp) for warp in range(bins)]
    warp, step = 0, 1
    for row in longest_first:
        while len(dealt[warp]) == room[warp]:
            warp, step = _next(warp, step, bins)
        dealt[warp].append(int(row))
        warp, step = _next(warp, step, bins)
    # Blocks of warps are dealt out likewise: neighbouring warps of this order are alike, so take them a block apart.
    blocks = -(-bins // warps)
    whole = (
        [warp for block in range(blocks) for warp in range(block, bins, blocks)] if bins % warps == 0 else range(bins)
    )
    order = np.array([row for warp in whole for row in dealt[warp]], np.int32)
    before, after = (_longest(row_nnz[o], per_warp, warps) for o in (np.arange(rows), order))
    gains = [1 - new / max(1, old) for old, new in zip(before, after, strict=True)]
    return order if gains[0] >= LEAST_BLOCK_GAIN or gains[1] >= LEAST_WARP_GAIN else None


def _next(warp: int, step: int, bins: int) -> tuple[int, int]:
    return (warp + step, step) if 0 <= warp + step < bins else (warp, -step)


def _longest(row_nnz: NDArray[np.integer], per_warp: int, warps: int) -> tuple[int, int]:
    """Nonzeros of the longest block and of the longest warp."""
    padded = np.pad(row_nnz, (0, -len(row_nnz) % (per_warp * warps)))
    by_warp = padded.reshape(-1, per_warp).sum(axis=1)
    return int(by_warp.reshape(-1, warps).sum(axis=1).max()), int(by_warp.max())


def store_in_order(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Store row k of "out" as output channel order[k], if the function has the parameter "order"."""
    order = next((param for param in func.params if param.name == "order"), None)
    if order is None:
        return func

    def in_block(block: s_tir.SBlock) -> s_tir.SBlock:
        store = block.body
        if not isinstance(store, tirx.BufferStore) or store.buffer.name != "out":
            return block
        image, row, *pixel = store.indices
        body = tirx.BufferStore(store.buffer, store.value, [image, order[row], *pixel])
        write = block.writes[0]
        return changed_block(block, writes=[whole(write.source)], body=body)

    return func.with_body(tvm_ffi.structural_map(func.body, (s_tir.SBlock, in_block), order="post"))
