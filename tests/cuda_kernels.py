"""A small scheduled CUDA kernel that the tests of several rooms compile."""

from __future__ import annotations

from typing import Any

LENGTH = 1000


def scaled_root() -> Any:
    """An IRModule whose `main` computes B = sqrt(A) / (A + 1) on float32 vectors of LENGTH, threads bound."""
    import tvm
    from tvm import te

    a = te.placeholder((LENGTH,), name="A")
    b = te.compute((LENGTH,), lambda i: te.sqrt(a[i]) / (a[i] + 1.0), name="B")
    schedule = tvm.s_tir.Schedule(te.create_prim_func([a, b]))
    (i,) = schedule.get_loops(schedule.get_sblock("B"))
    block, thread = schedule.split(i, [None, 128])
    schedule.bind(block, "blockIdx.x")
    schedule.bind(thread, "threadIdx.x")
    return schedule.mod
