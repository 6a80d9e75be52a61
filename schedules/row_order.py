"""Which rows of a filter stand together: published filters have rows four times as long as the median.

A block of threads waits at every chunk of channels for its slowest warp, and the last block for none. So rows are dealt
out to warps, longest first, each where its block is then done soonest; where each row belongs is looked up when it is
stored.
"""

from __future__ import annotations

import numpy as np
import tvm_ffi
from numpy.typing import NDArray
from tvm import s_tir, tirx

from tvm_sparse.schedules.blocks import changed_block
from tvm_sparse.schedules.storage import whole

#: The slowest block must gain this share of its time: random filters gain up to 0.12, and what is looked up costs more.
LEAST_GAIN = 0.13
#: How much sooner a block is done counts for more than how much its warp has to do.
OWN_LOAD = 1e-6


def balanced_order(loads: NDArray[np.integer], per_warp: int, warps: int) -> NDArray[np.int32] | None:
    """The rows in an order in which blocks of `warps` warps, `per_warp` rows each, are done soon and at the same time.

    Parameters
    ----------
    loads : (rows, chunks), nonzeros

    Returns
    -------
    (rows,) int32, or None where the rows are balanced well enough as they are.
    """
    rows, chunks = loads.shape
    bins = -(-rows // per_warp)
    blocks = -(-bins // warps)
    # A last warp that is not full takes no more than it holds.
    room = np.minimum(per_warp, np.maximum(0, rows - per_warp * np.arange(blocks * warps))).reshape(blocks, warps)
    load, slowest = np.zeros((blocks, warps, chunks)), np.zeros((blocks, 1, chunks))
    dealt: list[list[int]] = [[] for _ in range(blocks * warps)]
    for row in np.argsort(-loads.sum(axis=1), kind="stable"):
        done = np.maximum(slowest, load + loads[row]).sum(axis=2) + OWN_LOAD * load.sum(axis=2)
        block, warp = np.unravel_index(np.argmin(np.where(room > 0, done, np.inf)), room.shape)
        load[block, warp] += loads[row]
        slowest[block] = np.maximum(slowest[block], load[block, warp])
        room[block, warp] -= 1
        dealt[int(block) * warps + int(warp)].append(int(row))
    order = np.array([row for warp_rows in dealt for row in warp_rows], np.int32)
    before, after = (block_loads(loads[o], per_warp, warps).max() for o in (np.arange(rows), order))
    return order if after < (1 - LEAST_GAIN) * before else None


def block_loads(loads: NDArray[np.integer], per_warp: int, warps: int) -> NDArray[np.integer]:
    """(blocks,): nonzeros of the slowest warp of each chunk, summed over the chunks."""
    padded = np.pad(loads, ((0, -len(loads) % (per_warp * warps)), (0, 0)))
    return padded.reshape(-1, warps, per_warp, loads.shape[1]).sum(axis=2).max(axis=1).sum(axis=1)


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
