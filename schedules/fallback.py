"""Template `fallback`: direct convolution for every target, shape and dtype, without tiles.

    for every output element:                 (one thread of a GPU; on a CPU one task per image and output channel)
        part := Σ_j values[j] * x[where offset[j] points]
        out  := activation(part + bias + residual)

A tile is one pixel and its buffer is never written: every nonzero decodes its offset into channel, row and column and
tests for the padding. Nothing is shared between elements, so there is nothing that could be too large.
"""

from __future__ import annotations

from tvm import s_tir, tirx
from tvm.target import Target

from tvm_sparse.compute.direct_conv import DirectConv
from tvm_sparse.compute.vector_tiling import VectorTiling
from tvm_sparse.schedules.base import Knobs, Template, too_large
from tvm_sparse.schedules.gpu_target import thread_limit
from tvm_sparse.schedules.primitives import bind_row_length, mark_row_length
from tvm_sparse.workload import ConvWorkload


class Fallback(Template):
    name = "fallback"

    def applies(self, workload: ConvWorkload, target: Target) -> str | None:
        return too_large(workload)

    def space(self, workload: ConvWorkload, target: Target) -> dict[str, tuple[int | str, ...]]:
        if "gpu" not in target.keys:
            return {"format": ("csr",)}
        threads = tuple(n for n in (32, 64, 128, 256) if n <= thread_limit(target))
        return {"format": ("csr",), "threads": threads or (1,)}

    def default(self, workload: ConvWorkload, density: float, target: Target) -> dict[str, int | str]:
        return {name: values[-1] for name, values in self.space(workload, target).items()}

    def tiling(self, workload: ConvWorkload, knobs: Knobs) -> VectorTiling:
        return VectorTiling(workload, 1, 1, workload.c_per_group)

    def schedule(self, conv: DirectConv, tiling: VectorTiling, knobs: Knobs, target: Target) -> tirx.PrimFunc:
        sch = s_tir.Schedule(conv.prim_func())
        tile, part, out = (sch.get_sblock(name) for name in ("tile", "part", "out"))
        sch.compute_inline(tile)
        i, k, p, q = sch.get_loops(out)
        if "gpu" not in target.keys:
            sch.parallel(sch.fuse(i, k))
            sch.compute_at(part, q, preserve_unit_loops=True)
        else:
            element = sch.fuse(i, k, p, q)
            sch.compute_at(part, element, preserve_unit_loops=True)
            # Split after compute_at, so that the test for the last block guards both blocks.
            block, thread = sch.split(element, [None, int(knobs["threads"])])
            sch.bind(block, "blockIdx.x")
            sch.bind(thread, "threadIdx.x")
        sch.set_scope(part, 0, "local")
        c, j = sch.get_loops(part)[-2:]
        mark_row_length(sch, j)
        sch.decompose_reduction(part, c)
        return bind_row_length(sch.mod["main"])
