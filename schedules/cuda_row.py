"""Template `cuda_row`: direct convolution to a single output pixel on a GPU, threads on nonzeros: for linear layers.

    block = (images, rows of the filter):
        for chunk of the input:
            tile := this chunk of the images                                                   (shared memory)
            for own output channels, lane = nonzero:
                part[own, image] += Σ_j values[j, lane] * tile[image, offsets[j, lane]]        (registers)
        sum := Σ over the lanes of a row                                                       (shuffles)
        out := activation(sum + bias + residual)

Every weight is used once for each image, so at batch 1 the bound is the bandwidth of memory: 6 bytes a nonzero, its
offset being of 16 bits. With more images it is that of shared memory, which gives a warp 32 nonzeros' inputs at once
where they are in different banks; pack_rows orders them so, as far as a row has as many in each.
"""

from __future__ import annotations

import math
from itertools import product

from numpy.typing import NDArray
from tvm import s_tir, tirx
from tvm.target import Target

from tvm_sparse.compute.direct_conv import DirectConv
from tvm_sparse.compute.row_conv import RowTiling, pack_rows, row_conv2d
from tvm_sparse.compute.warp_tiling import WARP
from tvm_sparse.errors import InputError
from tvm_sparse.schedules.base import Kernel, Knobs, Template
from tvm_sparse.schedules.cuda_cost import CYCLES_PER_US, ENOUGH_WARPS, LAUNCH, SHARED_BYTES, THREADS
from tvm_sparse.schedules.cuda_cost import MULTIPROCESSORS as PROCESSORS
from tvm_sparse.schedules.gpu_target import shared_limit, thread_limit
from tvm_sparse.schedules.primitives import bind_row_length, declare_whole_read, mark_row_length
from tvm_sparse.schedules.registers import keep_own_lane
from tvm_sparse.workload import ELEMENT_BYTES, ConvWorkload

#: Lanes of a row: a warp or a part of it.
LANES = (4, 8, 16, 32)
#: Images of a block, rows and sums of a thread, products a step is unrolled to.
MOST_IMAGES, MOST_OWN, MOST_SUMS, MOST_UNROLLED = 16, 8, 64, 128
_CHUNKS = (1, 2, 4, 8, 16, 32, 64)
#: Bytes of a copy, of which chunks are whole multiples.
COPY_BYTES = 16
#: Bytes of an offset, as a rule.
OFFSET_BYTES = 2
#: Estimates, held against linear layers of AlexNet on an H200: bytes that all of a GPU reads in a cycle from memory and
#: from L2, loads of the busiest bank when a warp gathers, cycles of a chunk.
MEMORY_RATE, CACHE_RATE, CONFLICTS, CHUNK = 2200, 3600, 1.7, 1500


class CudaRow(Template):
    name = "cuda_row"

    def applies(self, workload: ConvWorkload, target: Target) -> str | None:
        if target.kind.name != "cuda":
            return f"target {target.kind.name} is not a CUDA GPU"
        if workload.dtype not in ELEMENT_BYTES:
            return f"only {', '.join(ELEMENT_BYTES)}, not {workload.dtype}"
        if workload.p * workload.q != 1:
            return f"{workload.p * workload.q} output pixels, one at most"
        if thread_limit(target) < max(LANES):
            return f"blocks of {thread_limit(target)} threads hold no warp"
        if _bytes(RowTiling(workload, 1, 1, _CHUNKS[-1]), 1) > shared_limit(target):
            return f"a chunk of the input takes more than {shared_limit(target)} bytes of shared memory"
        return None

    def space(self, workload: ConvWorkload, target: Target) -> dict[str, tuple[int | str, ...]]:
        return {
            "lanes": LANES,
            "rows": _divisors(workload.k, thread_limit(target) // min(LANES)),
            "own_rows": _divisors(workload.k, MOST_OWN),
            "images": _divisors(workload.n, MOST_IMAGES),
            "chunks": _CHUNKS,
            "unroll": (1, 2, 4, 8),
        }

    def default(self, workload: ConvWorkload, density: float, target: Target) -> dict[str, int | str]:
        row = density * workload.c_per_group * workload.r * workload.s
        lanes = next((lanes for lanes in reversed(LANES) if row >= 4 * lanes), min(LANES))
        best: tuple[float, dict[str, int | str]] = (math.inf, {})
        for images, chunks in product(_divisors(workload.n, MOST_IMAGES), _CHUNKS):
            unroll = next((u for u in (4, 2) if row / chunks >= 4 * u * lanes and u * images <= MOST_UNROLLED), 1)
            for rows, own in product(
                _divisors(workload.k, thread_limit(target) // lanes), _divisors(workload.k, MOST_OWN)
            ):
                knobs: dict[str, int | str] = {"lanes": lanes, "rows": rows, "own_rows": own, "unroll": unroll}
                knobs |= {"images": images, "chunks": chunks}
                best = min(best, (self.estimate_us(workload, density, knobs, target), knobs), key=lambda one: one[0])
        return best[1]

    def estimate_us(self, workload: ConvWorkload, density: float, knobs: Knobs, target: Target) -> float:
        tiling = self.tiling(workload, knobs)
        try:
            self._check(tiling, knobs, target)
        except InputError:
            return math.inf
        rows, own_rows, images = (int(knobs[name]) for name in ("rows", "own_rows", "images"))
        size, threads = ELEMENT_BYTES[workload.dtype], rows * tiling.lanes
        blocks = workload.n // images * (workload.k // (rows * own_rows))
        row = density * workload.c_per_group * workload.r * workload.s
        nonzeros = workload.k * (row + tiling.chunks * tiling.step / 2)
        weights = nonzeros * (size + OFFSET_BYTES)
        again = (workload.n / images - 1) * weights + blocks * tiling.chunks * _bytes(tiling, images)
        reading = weights / MEMORY_RATE + again / CACHE_RATE
        gathered = workload.n * nonzeros / WARP * CONFLICTS / PROCESSORS
        each = -(-blocks // PROCESSORS)
        resident = max(1, min(each, SHARED_BYTES // _bytes(tiling, images), THREADS // threads))
        idle = each * PROCESSORS / blocks * max(1.0, (ENOUGH_WARPS * WARP / (resident * threads)) ** 0.7)
        waiting = -(-each // resident) * tiling.chunks * CHUNK
        return (LAUNCH + waiting + idle * (reading + gathered)) / CYCLES_PER_US

    def tiling(self, workload: ConvWorkload, knobs: Knobs) -> RowTiling:  # type: ignore[override]
        return RowTiling(workload, int(knobs["lanes"]), int(knobs["unroll"]), int(knobs["chunks"]))

    def shared_bytes(self, tiling: RowTiling, knobs: Knobs) -> int:
        """Shared memory of a block."""
        return _bytes(tiling, int(knobs["images"]))

    def _kernel(self, workload: ConvWorkload, weight: NDArray, target: Target, chosen: dict[str, int | str]) -> Kernel:
        """Pack `weight` by rows and schedule its convolution."""
        tiling = self.tiling(workload, chosen)
        constants = pack_rows(weight, tiling)
        func = self.schedule(row_conv2d(tiling, constants), tiling, chosen, target)
        return self.finished(workload, chosen, func, constants)

    def schedule(self, conv: DirectConv, tiling: RowTiling, knobs: Knobs, target: Target) -> tirx.PrimFunc:
        self._check(tiling, knobs, target)
        rows, own_rows, images = (int(knobs[name]) for name in ("rows", "own_rows", "images"))
        sch = s_tir.Schedule(conv.prim_func())
        tile, part, total, out = (sch.get_sblock(name) for name in ("tile", "part", "sum", "out"))
        declare_whole_read(sch, part, "tile")

        i, k, p, q = sch.get_loops(out)
        i_outer, image = sch.split(i, [None, images])
        k_outer, row, own = sch.split(k, [None, rows, own_rows])
        sch.reorder(i_outer, k_outer, row, own, image, p, q)
        block = sch.fuse(i_outer, k_outer)
        sch.bind(block, "blockIdx.x")
        sch.bind(row, "threadIdx.y")
        sch.compute_at(total, image, preserve_unit_loops=True)
        sch.set_scope(total, 0, "local")
        sch.bind(sch.get_loops(total)[-1], "threadIdx.x")
        # Left to nvcc: TVM 0.27 refuses to lower what is several sums over threads once it has unrolled the loops.
        sch.unroll(own)
        sch.unroll(image)
        sch.annotate(own, "pragma_unroll_explicit", 0)

        sch.compute_at(part, row, preserve_unit_loops=True)
        sch.set_scope(part, 0, "local")
        image, own, lane, chunk, step, again = sch.get_loops(part)[-6:]
        sch.reorder(lane, chunk, own, step, again, image)
        sch.bind(lane, "threadIdx.x")
        mark_row_length(sch, step)
        for loop in (own, again, image):
            sch.unroll(loop)

        sch.compute_at(tile, chunk, preserve_unit_loops=True)
        sch.set_scope(tile, 0, "shared.dyn")
        run = sch.fuse(*sch.get_loops(tile)[-3:])
        _, y, x, element = sch.split(run, [None, rows, tiling.lanes, _copy_width(tiling)])
        sch.bind(y, "threadIdx.y")
        sch.bind(x, "threadIdx.x")
        sch.vectorize(element)
        init = sch.decompose_reduction(part, chunk)
        for loop in sch.get_loops(init)[-2:]:
            sch.unroll(loop)
        return keep_own_lane(bind_row_length(sch.mod["main"]), "part_local")

    def _check(self, tiling: RowTiling, knobs: Knobs, target: Target) -> None:
        workload, images = tiling.workload, int(knobs["images"])
        limits = {
            "threads a block": (tiling.lanes * int(knobs["rows"]), thread_limit(target)),
            "bytes of shared memory a block": (self.shared_bytes(tiling, knobs), shared_limit(target)),
            "sums a thread": (int(knobs["own_rows"]) * images, MOST_SUMS),
            "products a step": (tiling.unroll * images, MOST_UNROLLED),
        }
        for what, (needed, allowed) in limits.items():
            if needed > allowed:
                raise InputError(f"{workload}: knobs {dict(knobs)}: {needed} {what}, {allowed} at most")
        if workload.k % (int(knobs["rows"]) * int(knobs["own_rows"])):
            raise InputError(f"{workload}: knobs {dict(knobs)}: a block's rows do not divide {workload.k}")


def _bytes(tiling: RowTiling, images: int) -> int:
    return images * tiling.elements * ELEMENT_BYTES[tiling.workload.dtype]


def _copy_width(tiling: RowTiling) -> int:
    """Elements of a copy: 16 bytes where all chunks are whole ones, which need no test, else a single element."""
    whole = tiling.chunks * tiling.elements == tiling.size
    return COPY_BYTES // ELEMENT_BYTES[tiling.workload.dtype] if whole else 1


def _divisors(number: int, limit: int) -> tuple[int, ...]:
    return tuple(d for d in range(1, min(number, limit) + 1) if math.gcd(d, number) == d)
