"""CUDA rules: our own for what networks keep dense, TVM's dlight, and a last one that binds what is left."""

from __future__ import annotations

from tvm import s_tir, tirx
from tvm.s_tir.dlight import ScheduleRule, gpu
from tvm.target import Target

from tvm_sparse.schedules.rules.cuda_elementwise import Elementwise
from tvm_sparse.schedules.rules.cuda_linear import Linear
from tvm_sparse.schedules.rules.cuda_row_reduction import RowReduction
from tvm_sparse.schedules.rules.cuda_short_reduction import ShortReduction
from tvm_sparse.schedules.rules.cuda_window import WindowRows
from tvm_sparse.schedules.rules.window_pattern import match_window

BLOCK_THREADS = 256


def cuda_rules() -> list[ScheduleRule]:
    """Ours, dlight's rules in dlight's order, then `BindEverything`."""
    dlight = [gpu.Matmul(), gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction(), gpu.Fallback()]
    own = [WindowRows(), WindowPerThread(), Linear(), RowReduction(), ShortReduction(), Elementwise()]
    return [*own, *dlight, BindEverything()]


class WindowPerThread(ScheduleRule):
    """Pooling and depthwise convolution: a thread per output; dlight would give 256 threads to the few taps of one."""

    def apply(self, func: tirx.PrimFunc, target: Target, tunable: bool) -> s_tir.Schedule | None:
        """Return dlight's fallback schedule when `func` is a window with more outputs a plane than taps."""
        window = match_window(func)
        if window is None or window.y.output * window.x.output < window.taps:
            return None
        return gpu.Fallback().apply(func, target, tunable)


class BindEverything(ScheduleRule):
    """Each block its own kernel, a thread per output element, reductions serial inside; nothing is inlined."""

    def apply(self, func: tirx.PrimFunc, target: Target, tunable: bool) -> s_tir.Schedule | None:
        """Return the schedule; it needs no normal form, only blocks with one loop a block variable."""
        sch = s_tir.Schedule(func)
        for block in sch.get_child_blocks(sch.get_sblock("root")):
            statement, loops = sch.get(block), sch.get_loops(block)
            kinds = [v.iter_type for v in statement.iter_vars]
            if len(kinds) != len(loops):
                spatial, reduce = [], loops
            else:
                spatial = [n for n, k in zip(loops, kinds, strict=True) if k == tirx.IterVar.DataPar]
                reduce = [n for n, k in zip(loops, kinds, strict=True) if k != tirx.IterVar.DataPar]
            if not spatial:
                spatial = [sch.add_unit_loop(loops[0] if loops else block)]
            sch.reorder(*spatial, *reduce)
            grid, thread = sch.split(sch.fuse(*spatial), [None, BLOCK_THREADS])
            sch.bind(grid, "blockIdx.x")
            sch.bind(thread, "threadIdx.x")
            if reduce and statement.init is not None:
                sch.decompose_reduction(block, reduce[0])
        return sch
