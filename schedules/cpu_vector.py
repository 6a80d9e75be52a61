"""Template `cpu_vector`: direct convolution on a CPU with vector lanes on output pixels.

    parallel (image, group, part of k) x (tile row, tile column):
        for chunk of channels:
            tile   := input of this tile and chunk, packed so that pixels are consecutive      (fits L1)
            for row block kb:
                part[v, f] := Σ_j values[j, v] * tile[offset[j] + f]                           (registers)
                sum[kb, v, f] += part[v, f]                                                    (L2)
        for row block kb: out := activation(sum + bias + residual)

One multiply-add needs one aligned vector load of the tile, which stays in L1 for all output channels. A dense filter is
the same kernel with row blocks of several channels that share every column: each load feeds `vector` multiply-adds.
"""

from __future__ import annotations

from typing import Any

from tvm import s_tir, tirx
from tvm.target import Target

from tvm_sparse.compute.direct_conv import DirectConv
from tvm_sparse.compute.vector_tiling import VectorTiling
from tvm_sparse.schedules.base import Knobs, Template, closest_divisor
from tvm_sparse.schedules.cpu_target import cores_of, lanes_of, vector_bits
from tvm_sparse.schedules.masked_copies import MASKED_BITS, mask_copies
from tvm_sparse.schedules.primitives import bind_row_length, declare_whole_read, mark_row_length
from tvm_sparse.schedules.rules.cpu_math import vectorizable_math
from tvm_sparse.workload import ConvWorkload

#: What a tile's input may take of the first-level cache, in bytes.
TILE_BYTES = 40 * 1024
#: Vectors of pixels a sparse row keeps in registers: enough to hide the latency of a multiply-add, few enough to fit.
SPARSE_VECTORS = 8
#: What packing an element takes, in multiply-adds; more where others lie between. Of so many tasks a core one more or
#: less does not matter.
PACKED, MANY_TASKS = 5.0, 4
#: Above this density a row block of several channels that share every column beats a row of its own nonzeros.
DENSE_FROM = 0.75


class CpuVector(Template):
    name = "cpu_vector"

    def applies(self, workload: ConvWorkload, target: Target) -> str | None:
        if target.kind.name != "llvm":
            return f"target {target.kind.name} is not a CPU"
        if workload.dtype != "float32":
            return f"only float32, not {workload.dtype}"
        return None

    def space(self, workload: ConvWorkload, target: Target) -> dict[str, tuple[int | str, ...]]:
        width = lanes_of(target, workload.dtype)
        channels = sorted(
            {closest_divisor(workload.c_per_group, limit) for limit in (4, 8, 16, 32, 64, 128, 256, 4096)}
        )
        return {
            "rows": tuple(range(1, min(workload.p, 16) + 1)),
            "cols": (width // 4, width // 2, *(width * m for m in range(1, 9))),
            "channels": tuple(channels),
            "layout": ("columns", "taps"),
            "k_parts": tuple(d for d in (1, 2, 4, 8, 16) if workload.k_per_group % d == 0),
            "format": ("csr", "sliced_ell:8", *(f"column_vector:{v}" for v in (2, 3, 4, 6, 8) if _whole(workload, v))),
        }

    def default(self, workload: ConvWorkload, density: float, target: Target) -> dict[str, int | str]:
        width = lanes_of(target, workload.dtype)
        accumulators = 24 if width >= 16 else 12
        dense = density > DENSE_FROM
        vector = next(v for v in (8, 6, 4, 3, 2, 1) if _whole(workload, v)) if dense else 1
        rows, cols = _tile_shape(workload, width, min(SPARSE_VECTORS, accumulators // vector))
        layout = _layout(workload, rows, cols, width)
        column_bytes = 4 * VectorTiling(workload, rows, cols, 1, layout).elements
        channels = max(1, min(workload.c_per_group, TILE_BYTES // column_bytes))
        chunks = -(-workload.c_per_group // channels)
        return {
            "rows": rows,
            "cols": cols,
            "channels": -(-workload.c_per_group // chunks),
            "layout": layout,
            "k_parts": _parts(
                workload, density, VectorTiling(workload, rows, cols, 1, layout), vector, cores_of(target)
            ),
            "format": f"column_vector:{vector}" if vector > 1 else "csr",
        }

    def tiling(self, workload: ConvWorkload, knobs: Knobs) -> VectorTiling:
        channels = int(knobs["channels"])
        chunks = -(-workload.c_per_group // channels)
        return VectorTiling(workload, int(knobs["rows"]), int(knobs["cols"]), channels, str(knobs["layout"]), chunks)

    def schedule(self, conv: DirectConv, tiling: VectorTiling, knobs: Knobs, target: Target) -> tirx.PrimFunc:
        sch = s_tir.Schedule(conv.prim_func())
        width = lanes_of(target, tiling.workload.dtype)
        tile, part, out = (sch.get_sblock(name) for name in ("tile", "part", "out"))
        declare_whole_read(sch, part, "tile")
        declare_whole_read(sch, out, "sum" if tiling.splits > 1 else "part")
        vector = int(sch.get(part).iter_vars[3].dom.extent)

        i, k, p, q = sch.get_loops(out)
        ty, row = sch.split(p, [None, min(tiling.rows, tiling.workload.p)])
        tx, col = sch.split(q, [None, min(tiling.cols, tiling.workload.q)])
        k_outer, kb, v = sch.split(k, [tiling.workload.groups * int(knobs["k_parts"]), None, vector])
        sch.reorder(i, k_outer, ty, tx, kb, v, row, col)
        task = sch.fuse(i, k_outer, ty, tx)
        sch.parallel(task)

        part_at, tile_at = kb, task
        if tiling.splits > 1:
            total = sch.get_sblock("sum")
            sch.compute_at(total, task, preserve_unit_loops=True)
            *_, sum_kb, sum_v, _, _, sum_f, chunk = sch.get_loops(total)
            sch.reorder(chunk, sum_kb, sum_v, sum_f)
            part_at, tile_at = sum_kb, chunk
        sch.compute_at(part, part_at, preserve_unit_loops=True)
        sch.set_scope(part, 0, "local")
        sch.compute_at(tile, tile_at)
        # Any other split than by the true factors leaves divisions in the copy.
        sch.split(sch.get_loops(tile)[-1], [tiling.channels, tiling.copies, tiling.in_rows, tiling.cols])

        part_v, _, _, part_f, c, j = sch.get_loops(part)[-6:]
        t, lane = sch.split(part_f, [None, width])
        sch.reorder(c, j, part_v, t, lane)
        _keep_in_registers(sch, [part_v, t, lane])
        mark_row_length(sch, j)
        _keep_in_registers(sch, sch.get_loops(sch.decompose_reduction(part, c))[-5:])
        if tiling.splits > 1:
            t, lane = sch.split(sum_f, [None, width])
            _keep_in_registers(sch, [sum_v, t, lane])
            _keep_in_registers(sch, sch.get_loops(sch.decompose_reduction(total, chunk))[-5:])
        func = bind_row_length(sch.mod["main"])
        return vectorizable_math(mask_copies(func, width) if vector_bits(target) >= MASKED_BITS else func)


def _layout(workload: ConvWorkload, rows: int, cols: int, width: int) -> str:
    """The smaller packed tile: copies for every kernel column, or for every kernel element where rows are strided.

    Vectors that hold several strided rows need the latter, in which pixels are always consecutive.
    """
    shared_rows = (rows - 1) * workload.stride[0] + (workload.r - 1) * workload.dilation[0] + 1
    spread = cols < width and workload.stride[0] > 1
    return "taps" if spread or workload.r * rows < shared_rows else "columns"


def _whole(workload: ConvWorkload, vector: int) -> bool:
    """Blocks of `vector` output channels do not reach over two groups."""
    return workload.groups == 1 or workload.k_per_group % vector == 0


def _parts(workload: ConvWorkload, density: float, tile: VectorTiling, vector: int, cores: int) -> int:
    """Into how many equal parts, of whole row blocks, the output channels of a group are cut.

    Tiles at the edge hold fewer pixels, and threads take as many tasks each. Every part packs the tile once more.
    `tile` is that of one channel.
    """
    heights, widths = (
        [min(step, size - first) for first in range(0, size, step)]
        for size, step in ((workload.p, tile.rows), (workload.q, tile.cols))
    )
    tiles = [height * width for height in heights for width in widths]
    packed = PACKED * workload.stride[1] * tile.elements / (tile.rows * tile.cols)
    outer = workload.n * workload.groups
    blocks = workload.k_per_group // vector
    if outer * len(tiles) >= MANY_TASKS * cores or not blocks:
        return 1
    sums = density * workload.k_per_group * workload.r * workload.s

    def longest(parts: int) -> float:
        tasks = [pixels * (sums / parts + packed) for pixels in tiles] * (parts * outer)
        each = -(-len(tasks) // cores)
        return max(sum(tasks[first : first + each]) for first in range(0, len(tasks), each))

    most = MANY_TASKS * cores
    return min((parts for parts in range(1, min(most, blocks) + 1) if blocks % parts == 0), key=longest)


def _tile_shape(workload: ConvWorkload, width: int, vectors: int) -> tuple[int, int]:
    """(rows, cols) of a tile of up to `vectors` full vectors, for the least work on idle lanes, halo rows, row
    starts and guarded edges.

    Only an output narrower than a vector puts several rows into one: a shift by a kernel row is then not aligned.
    """
    narrow = [cols for cols in (width // 4, width // 2) if workload.q <= cols]
    candidates: list[tuple[float, int, int]] = []
    for cols in narrow[:1] or [width * m for m in range(1, vectors + 1)]:
        step = max(1, width // cols)
        for rows in range(step, vectors * width // cols + 1, step):
            computed = -(-workload.p // rows) * rows * -(-workload.q // cols) * cols
            halo = 1 + 0.3 * (workload.r - 1) / workload.stride[0] / rows
            row_start = 1 + 2 * width / (rows * cols)
            ragged = 1.15 if workload.pointwise and workload.q > cols and workload.q % cols else 1.0
            candidates.append((computed * halo * row_start * ragged, rows, cols))
    _, rows, cols = min(candidates)
    return rows, cols


def _keep_in_registers(sch: s_tir.Schedule, loops: list[Any]) -> None:
    *registers, lane = loops
    sch.vectorize(lane)
    for loop in registers:
        sch.unroll(loop)
