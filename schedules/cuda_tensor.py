"""Template `cuda_tensor`: dense 16-bit convolution of few input channels on a GPU's tensor cores.

    block = (image, tile of pixels, output channels):
        tile := input of this tile, all channels                                               (shared memory)
        warp = (`channel_tiles` x 16 output channels, row, `pixel_tiles` x 8 pixels):
            for step of 16 columns:
                part += filter[step] * tile[step]                                              (mma.m16n8k16)
        out := activation(part + bias + residual)

The first layer of a network is of this kind, and pruning it gains little. Weights come from the cache, laid out as the
instruction wants them; the tile is read in place (compute/tensor_conv.py). Sums are float32.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import tvm
import tvm_ffi
from numpy.typing import NDArray
from tvm import s_tir, tirx
from tvm.backend.cuda.op import cuda_func_call
from tvm.script import tirx as T
from tvm.target import Target

from tvm_sparse.compute.direct_conv import DirectConv
from tvm_sparse.compute.tensor_conv import PAIR, K, M, N, TensorTiling, tensor_conv2d, tensor_filter
from tvm_sparse.compute.warp_tiling import WARP
from tvm_sparse.errors import InputError
from tvm_sparse.schedules.base import Kernel, Knobs, Template
from tvm_sparse.schedules.blocks import at_first
from tvm_sparse.schedules.copy_tests import branch_copies
from tvm_sparse.schedules.gpu_target import shared_limit, thread_limit
from tvm_sparse.schedules.primitives import declare_whole_read
from tvm_sparse.schedules.registers import keep_own_lane
from tvm_sparse.schedules.storage import whole as everything
from tvm_sparse.workload import ELEMENT_BYTES, ConvWorkload

MMA = "mma"
#: How CUDA and PTX call the elements.
ELEMENT, PTX = {"float16": "half", "bfloat16": "nv_bfloat16"}, {"float16": "f16", "bfloat16": "bf16"}
MULTIPLY_ADD = """
__forceinline__ __device__ void NAME(float* sums, const ELEMENT* weights, const ELEMENT* first, const ELEMENT* second) {
#pragma unroll
  for (int m = 0; m < CHANNEL_TILES; ++m) {
    uint4 a = *(const uint4*)(weights + m * 256);
#pragma unroll
    for (int n = 0; n < PIXEL_TILES; ++n) {
      float* s = sums + (m * PIXEL_TILES + n) * 4;
      unsigned b = *(const unsigned*)(first + n * APART), c = *(const unsigned*)(second + n * APART);
      asm("mma.sync.aligned.m16n8k16.row.col.f32.PTX.PTX.f32 "
          "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
          : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3])
          : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b), "r"(c));
    }
  }
}
"""
#: The oldest GPUs with the instruction.
OLDEST_ARCH = 80
#: Steps of the filter, all of which are unrolled; sums of a thread.
MOST_STEPS, MOST_SUMS = 32, 128
#: Threads of a block and sums of a thread by default, which let several blocks share a multiprocessor.
THREADS, SUMS = 256, 64
CHANNEL_TILES, PIXEL_TILES, ROWS = (1, 2, 4), (1, 2, 4, 7, 8), (1, 2, 4, 8)


class CudaTensor(Template):
    name = "cuda_tensor"

    def applies(self, workload: ConvWorkload, target: Target) -> str | None:
        if target.kind.name != "cuda":
            return f"target {target.kind.name} is not a CUDA GPU"
        if ELEMENT_BYTES.get(workload.dtype) != 2:
            return f"only float16 and bfloat16, not {workload.dtype}"
        version = "".join(filter(str.isdigit, str(target.attrs.get("arch", ""))))
        if int(version or 0) < OLDEST_ARCH:
            return f"needs sm_{OLDEST_ARCH} or later"
        if workload.groups > 1 or workload.dilation[1] > 1 or workload.stride[1] % PAIR or workload.w % PAIR:
            return "only one group, an even column stride, columns without dilation and rows of even length"
        smallest = TensorTiling(workload, 1, N)
        if smallest.steps > MOST_STEPS:
            return f"{smallest.steps} steps of {K} columns, {MOST_STEPS} at most"
        if self._bytes(smallest) > shared_limit(target):
            return f"the smallest tile takes {self._bytes(smallest)} bytes of shared memory, of {shared_limit(target)}"
        return None

    def space(self, workload: ConvWorkload, target: Target) -> dict[str, tuple[int | str, ...]]:
        return {
            "rows": ROWS,
            "pixel_tiles": PIXEL_TILES,
            "channel_tiles": CHANNEL_TILES,
            "warps_along": (1, 2, 4),
            "warps_across": (1, 2, 4),
        }

    def default(self, workload: ConvWorkload, density: float, target: Target) -> dict[str, int | str]:
        """Little idle, then warps of many sums, then blocks of many threads."""
        names = ("rows", "pixel_tiles", "channel_tiles", "warps_along", "warps_across")
        ranked: list[tuple[Any, dict[str, int | str]]] = []
        for values in product(ROWS, PIXEL_TILES, CHANNEL_TILES, (1, 2, 4), (1, 2, 4)):
            knobs: dict[str, int | str] = dict(zip(names, values, strict=True))
            tiling = self.tiling(workload, knobs)
            try:
                self._check(tiling, knobs, target)
            except InputError:
                continue
            rows, pixels, channels, *_ = values
            threads = self._warps(knobs) * WARP
            shares = (workload.p, rows), (workload.q, tiling.cols)
            waste = math.prod(-(-size // share) * share / size for size, share in shares)
            loads = (channels * 4 + pixels * 2) / (channels * pixels)
            ranked.append(
                ((threads > THREADS or 4 * channels * pixels > SUMS, waste * (1 + loads / 4), -threads), knobs)
            )
        return min(ranked, key=lambda each: each[0])[1]

    def tiling(self, workload: ConvWorkload, knobs: Knobs) -> TensorTiling:  # type: ignore[override]
        return TensorTiling(workload, int(knobs["rows"]), int(knobs["pixel_tiles"]) * int(knobs["warps_along"]) * N)

    @staticmethod
    def _bytes(tiling: TensorTiling) -> int:
        return tiling.elements * ELEMENT_BYTES[tiling.workload.dtype]

    def shared_bytes(self, tiling: TensorTiling, knobs: Knobs) -> int:
        """Shared memory of a block."""
        return self._bytes(tiling)

    @staticmethod
    def _warps(knobs: Knobs) -> int:
        return int(knobs["rows"]) * int(knobs["warps_along"]) * int(knobs["warps_across"])

    def _check(self, tiling: TensorTiling, knobs: Knobs, target: Target) -> None:
        channels = int(knobs["channel_tiles"]) * int(knobs["warps_across"])
        limits = {
            "threads a block": (self._warps(knobs) * WARP, thread_limit(target)),
            "bytes of shared memory a block": (self._bytes(tiling), shared_limit(target)),
            "sums a thread": (4 * int(knobs["channel_tiles"]) * int(knobs["pixel_tiles"]), MOST_SUMS),
        }
        for what, (needed, allowed) in limits.items():
            if needed > allowed:
                raise InputError(f"{tiling.workload}: knobs {dict(knobs)}: {needed} {what}, {allowed} at most")
        if tiling.channel_tiles % channels:
            raise InputError(f"{tiling.workload}: knobs {dict(knobs)}: a block would have idle output channels")

    def _kernel(self, workload: ConvWorkload, weight: NDArray, target: Target, chosen: dict[str, int | str]) -> Kernel:
        tiling = self.tiling(workload, chosen)
        func = self.schedule(tensor_conv2d(tiling), tiling, chosen, target)
        return self.finished(workload, chosen, func, tensor_filter(weight, tiling))

    def schedule(self, conv: DirectConv, tiling: TensorTiling, knobs: Knobs, target: Target) -> tirx.PrimFunc:
        self._check(tiling, knobs, target)
        along, across = int(knobs["warps_along"]), int(knobs["warps_across"])
        sch = s_tir.Schedule(conv.prim_func())
        part, out = sch.get_sblock("part"), sch.get_sblock("out")
        declare_whole_read(sch, part, "tile", dims=2)
        declare_whole_read(sch, out, "part", dims=3)
        sch.set_scope(part, 0, "local")
        n, k, p, q = sch.get_loops(out)
        k, k_warp, mt, half, channel = sch.split(k, [None, across, int(knobs["channel_tiles"]), 2, M // 2])
        p, row = sch.split(p, [None, tiling.rows])
        q, q_warp, nt, pixel, e = sch.split(q, [None, along, int(knobs["pixel_tiles"]), N // 2, 2])
        sch.reorder(n, p, q, k, k_warp, row, q_warp, channel, pixel, mt, half, nt, e)
        block, warp = sch.fuse(n, p, q, k), sch.fuse(k_warp, row, q_warp)
        sch.bind(block, "blockIdx.x")
        sch.bind(warp, "threadIdx.y")
        sch.compute_at(part, warp, preserve_unit_loops=True)
        *_, own_mt, own_row, own_nt, lane, own_half, own_e, step, column = sch.get_loops(part)
        sch.reorder(lane, step, own_mt, own_row, own_nt, own_half, own_e, column)
        sch.bind(lane, "threadIdx.x")
        sch.bind(sch.fuse(channel, pixel), "threadIdx.x")
        _stage(sch, block, self._warps(knobs), tiling.copy_width)
        init = sch.decompose_reduction(part, step)
        for loop in [*sch.get_loops(init)[-5:], step, mt, half, nt]:
            sch.unroll(loop)
        (sch.unroll if tiling.workload.q % 2 else sch.vectorize)(e)
        sch.annotate(own_mt, MMA, 1)
        func = _multiply(sch.mod["main"], tiling)
        return branch_copies(keep_own_lane(func, "part_local", dim=-3), ahead=False)


def _stage(sch: s_tir.Schedule, block: Any, warps: int, width: int) -> None:
    """Copy the tile to shared memory, by all threads of a block."""
    tile = sch.get_sblock("tile")
    sch.set_scope(tile, 0, "shared.dyn")
    sch.compute_at(tile, block, preserve_unit_loops=True)
    copy, element = sch.get_loops(tile)[-2:]
    _, warp, lane = sch.split(copy, [None, warps, WARP])
    sch.bind(warp, "threadIdx.y")
    sch.bind(lane, "threadIdx.x")
    sch.vectorize(element)


def _multiply(func: tirx.PrimFunc, tiling: TensorTiling) -> tirx.PrimFunc:
    """Put instructions of all lanes in the place of the marked loops over what they compute.

    TVM 0.27 does not see what they read: a barrier stands behind the copies.
    """

    def rewrite(loop: tirx.For) -> Any:
        return _instructions(loop, tiling) if MMA in loop.annotations else loop

    def separate(sequence: tirx.SeqStmt) -> Any:
        first, *rest = sequence.seq
        inner: Any = first
        while isinstance(inner, tirx.For):
            inner = inner.body
        if not isinstance(inner, s_tir.SBlockRealize) or inner.block.name_hint != "tile":
            return sequence
        barrier = s_tir.SBlock([], [], [], "barrier", tirx.Evaluate(T.tvm_storage_sync("shared")))
        return tirx.SeqStmt([first, s_tir.SBlockRealize([], tirx.const(True, "bool"), barrier), *rest])

    return func.with_body(
        tvm_ffi.structural_map(func.body, [(tirx.For, rewrite), (tirx.SeqStmt, separate)], order="pre")
    )


def _instructions(loop: tirx.For, tiling: TensorTiling) -> s_tir.SBlockRealize:
    loops: list[tirx.For] = []
    inner: Any = loop
    while isinstance(inner, tirx.For):
        loops.append(inner)
        inner = inner.body
    block = inner.block
    i, ty, tx, mt, row, nt, lane, _, _, step, _ = (each.var for each in block.iter_vars)
    total, term = block.body.buffer, block.body.value.b
    weights, tile = term.a.value.source, term.b.value.source
    dtype, workload = str(tile.dtype), tiling.workload
    channel_tiles, _, pixel_tiles, *_ = (int(each.extent) for each in loops)

    def of_tile(second: int) -> Any:
        at = tiling.address(step * (K // PAIR) + lane % 4 + second * 4, row, nt * N + lane // 4)
        return T.address_of(tirx.BufferLoad(tile, [i, ty, tx, at // tiling.copy_width, at % tiling.copy_width]))

    name = f"mma_{ELEMENT[dtype]}_{channel_tiles}_{pixel_tiles}_{workload.stride[1]}"
    words = {
        "NAME": name,
        "ELEMENT": ELEMENT[dtype],
        "PTX": PTX[dtype],
        "CHANNEL_TILES": channel_tiles,
        "PIXEL_TILES": pixel_tiles,
        "APART": N * workload.stride[1],
    }
    source = MULTIPLY_ADD
    for word, meaning in words.items():
        source = source.replace(word, str(meaning))
    sums = T.address_of(tirx.BufferLoad(total, list(block.body.indices)))
    held = T.address_of(tirx.BufferLoad(weights, [step, mt, lane, 0]))
    call = cuda_func_call(name, sums, held, of_tile(0), of_tile(1), source_code=source, return_type="void")

    def whole(region: Any) -> Any:
        if not region.source.same_as(total):
            return region
        extents = (channel_tiles, 1, pixel_tiles, 1, 2, 2)
        first = [each.min for each in region.region]
        own = [tvm.ir.Range.from_min_extent(at, extent) for at, extent in zip(first[3:], extents, strict=True)]
        return tirx.BufferRegion(total, [*list(region.region)[:3], *own])

    reads, writes = ([whole(region) for region in regions] for regions in (block.reads, block.writes))
    # What the instructions read was declared for a single product.
    reads = [region if region.source.same_as(total) else everything(region.source) for region in reads]
    first = at_first(inner, [each.loop_var for each in loops], reads=reads, writes=writes, body=tirx.Evaluate(call))
    # Pixels beyond the output have a place in the tile, too, and all lanes of a warp take part.
    return s_tir.SBlockRealize(first.iter_values, tirx.const(True, "bool"), first.block)
