"""No multiprocessor has room for more blocks of a kernel than its share, and always for that."""

from __future__ import annotations

import pytest
import tvm
import tvm_ffi

from tests.cases import Case
from tests.schedules.running import GPU, kernel
from tvm_sparse.tvm_support import asynchronous_copies
from tvm_sparse.tvm_support.even_blocks import (
    BLOCKS,
    MULTIPROCESSORS,
    RESERVED_BYTES,
    SHARED_BYTES,
    THREADS,
    even_bytes,
    spread_blocks,
)
from tvm_sparse.workload import ConvWorkload

MANY = MULTIPROCESSORS["sm_90"]


@pytest.mark.parametrize("own_bytes", [128, 25600, 232448])
@pytest.mark.parametrize("threads", [32, 96, 256, 1024])
@pytest.mark.parametrize("blocks", [1, 56, MANY, MANY + 1, 300, 1000, 100_000])
def test_a_share_fits_and_no_more(blocks: int, threads: int, own_bytes: int) -> None:
    extents = {"blockIdx.x": blocks, "threadIdx.x": 32, "threadIdx.y": threads // 32}
    given = even_bytes(extents, own_bytes, MANY)
    share = -(-blocks // MANY)
    room = min(SHARED_BYTES // (given + RESERVED_BYTES), THREADS // threads, BLOCKS)
    assert own_bytes <= given <= 232448
    assert room <= share
    assert room == share or given == own_bytes


def test_kernels_are_launched_with_an_even_share() -> None:
    case = Case(ConvWorkload(1, 32, 14, 14, 64, 3, 3, padding=(1, 1, 1, 1)), 0.1, "channels", 1)
    built = kernel("cuda_pixel_nonzero", case, GPU, split_over="blocks")
    lower, _, _ = tvm.tirx.get_tir_pipeline("default")
    with GPU, asynchronous_copies():
        target = tvm.tirx.transform.BindTarget(GPU)
        lowered = lower(target(tvm.IRModule({"main": built.func.with_attr("global_symbol", "main")})))

    def launched(module: tvm.IRModule) -> list[tuple[list[str], list[int]]]:
        found = []

        def visit(call: tvm.ir.Call) -> None:
            if str(getattr(call.op, "name", "")) == "tirx.call_ffi_kernel":
                names = [str(name) for name in call.attrs.launch_params]
                found.append((names, [int(value) for value in call.args[-len(names) :]]))

        for function in module.functions.values():
            tvm_ffi.structural_walk(function.body, (tvm.ir.Call, visit), order="pre")
        return found

    (sums, sum_extents), adds = launched(lowered)
    (names, extents), adds_after = launched(spread_blocks(lowered, "sm_90"))
    assert names == sums and names[-1] == "tirx.use_dyn_shared_memory" and adds_after == adds
    assert extents[:-1] == sum_extents[:-1] and extents[-1] > sum_extents[-1]
    assert launched(spread_blocks(lowered, "sm_120")) == launched(lowered)
    assert launched(spread_blocks(lowered, "sm_90", {"main_kernel"})) == launched(lowered)
    assert launched(spread_blocks(lowered, "sm_90", {"main_kernel_1"})) != launched(lowered)
