"""The CUDA templates keep to the limits of a block for any workload, and give real machine code."""

from __future__ import annotations

import pytest
import tvm
from tvm.target import Target

from tests.cases import Case, seeded
from tests.schedules.running import GPU, kernel, shared_bytes
from tvm_sparse.cuda.fatbin import find_fatbins
from tvm_sparse.cuda.paths import load_cudart
from tvm_sparse.errors import CompileError, InputError
from tvm_sparse.schedules import select, template
from tvm_sparse.tvm_support import check_cuda_modules, cuda_build, cuda_compiler
from tvm_sparse.workload import ConvWorkload, Epilogue

FULL = Epilogue(bias=True, residual=True, activation="relu")
SHAPES = {
    "3x3": ConvWorkload(1, 256, 14, 14, 256, 3, 3, padding=(1, 1, 1, 1), epilogue=FULL),
    "3x3 batch 32": ConvWorkload(32, 64, 56, 56, 64, 3, 3, padding=(1, 1, 1, 1), epilogue=FULL),
    "1x1": ConvWorkload(1, 1024, 1, 196, 256, 1, 1, epilogue=Epilogue(bias=True)),
    "stride 2": ConvWorkload(8, 128, 56, 56, 128, 3, 3, stride=(2, 2), padding=(1, 1, 1, 1)),
    "11x11": ConvWorkload(1, 3, 227, 227, 96, 11, 11, stride=(4, 4)),
    "groups": ConvWorkload(1, 96, 27, 27, 256, 5, 5, padding=(2, 2, 2, 2), groups=2),
    "7x7 image": ConvWorkload(4, 512, 7, 7, 512, 3, 3, padding=(1, 1, 1, 1)),
}
LARGE = {
    "11x11 of many channels": ConvWorkload(1, 2048, 64, 64, 16, 11, 11),
    "wide rows": ConvWorkload(1, 8, 4, 100_000, 8, 3, 3),
    "wide kernel": ConvWorkload(1, 4, 3, 5000, 4, 3, 1001, stride=(1, 3)),
    "far apart": ConvWorkload(1, 4, 600, 600, 4, 3, 3, dilation=(50, 50)),
    "tall stride": ConvWorkload(1, 4, 900, 90, 4, 3, 3, stride=(31, 1)),
    "many outputs": ConvWorkload(64, 16, 112, 112, 4096, 1, 1),
}
SMALL_GPU = {"max_shared_memory_per_block": 16384, "max_threads_per_block": 128}


def has_cuda() -> bool:
    try:
        return cuda_compiler("nvcc") is not None and load_cudart() is not None
    except CompileError:
        return False


def gpu(**limits: int) -> Target:
    return Target({"kind": "cuda", "arch": "sm_80", "max_threads_per_block": 1024, "thread_warp_size": 32, **limits})


@pytest.mark.skipif(not has_cuda(), reason="no nvcc here")
@pytest.mark.parametrize("density", [0.1, 1.0], ids=["sparse", "dense"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["cuda_pixel", "cuda_pixel_nonzero", "fallback"])
def test_machine_code_comes_out(name, shape, density):
    built = kernel(name, Case(SHAPES[shape], density, "rows", 1), GPU)
    with cuda_build("sm_90", compiler="nvcc") as build:
        executable = tvm.compile(tvm.IRModule({"main": built.func}), target=build.target)
    check_cuda_modules(executable, build)
    (fatbin,) = find_fatbins(build.binaries[0])
    assert fatbin.sm_numbers == (90,)


@pytest.mark.skipif(not has_cuda(), reason="no nvcc here")
@pytest.mark.parametrize("name", ["cuda_pixel", "cuda_pixel_nonzero", "fallback"])
def test_float16_gives_machine_code(name):
    workload = ConvWorkload(2, 32, 14, 14, 32, 3, 3, padding=(1, 1, 1, 1), dtype="float16", epilogue=FULL)
    built = kernel(name, Case(workload, 0.1, "", 1), GPU)
    with cuda_build("sm_90", compiler="nvcc") as build:
        check_cuda_modules(tvm.compile(tvm.IRModule({"main": built.func}), target=build.target), build)


@pytest.mark.parametrize("limits", [{"max_shared_memory_per_block": 49152}, SMALL_GPU], ids=["48 KB", "small"])
@pytest.mark.parametrize("shape", [*SHAPES, *LARGE])
@pytest.mark.parametrize("name", ["cuda_pixel", "cuda_pixel_nonzero"])
def test_the_default_fits_whatever_the_workload(name, shape, limits):
    workload, target, chosen = {**SHAPES, **LARGE}[shape], gpu(**limits), template(name)
    if chosen.applies(workload, target) is None:
        for density in (0.0, 0.1, 1.0):
            knobs = chosen.default(workload, density, target)
            tiling = chosen.tiling(workload, knobs)
            assert chosen.shared_bytes(tiling, knobs, entries=0) <= limits["max_shared_memory_per_block"]
            warps = int(knobs["warps"]) * (int(knobs["splits"]) if knobs.get("split_over") == "warps" else 1)
            assert warps * 32 <= limits.get("max_threads_per_block", 1024)
    else:
        assert "shared memory" in str(chosen.applies(workload, target))
        assert select(workload, 0.1, target).name not in ("cuda_pixel", "cuda_pixel_nonzero")


def test_the_default_is_always_accepted_on_a_small_gpu():
    for case in seeded(5, 60):
        for name in ("cuda_pixel", "cuda_pixel_nonzero", "fallback"):
            target = gpu(**SMALL_GPU)
            if template(name).applies(case.workload, target) is None:
                assert shared_bytes(kernel(name, case, target)) <= SMALL_GPU["max_shared_memory_per_block"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixels": "1x14x1", "blocks_per_warp": 16, "channels": 1, "warps": 1}, "sums a thread"),
        ({"pixels": "1x14x1", "blocks_per_warp": 8, "pad_to": 8, "channels": 1, "warps": 1}, "products a step"),
        ({"pixels": "1x14x1", "blocks_per_warp": 8, "warps": 32, "channels": 1, "pad_to": 1}, "registers a block"),
        ({"warps": 64}, "threads a block"),
        ({"channels": 256, "pixels": "1x14x1"}, "bytes of shared memory"),
        ({"format": "column_vector:64", "channels": 1, "pixels": "1x4x1", "warps": 1}, "sums a thread"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    target = gpu(max_shared_memory_per_block=49152)
    with pytest.raises(InputError, match=message):
        kernel("cuda_pixel", Case(SHAPES["3x3"], 0.1, "", 1), target, **changes)
    with pytest.raises(InputError, match="two groups"):
        kernel("cuda_pixel", Case(SHAPES["groups"], 0.1, "", 1), target, warps=3)


@pytest.mark.parametrize(("pixels", "splits", "shared"), [("2x7x1", 2, False), ("1x2x2", 4, True), ("2x7x1", 7, True)])
def test_warps_that_split_a_sum_share_it_in_whole_loops(pixels, splits, shared):
    knobs = {"split_over": "warps", "splits": splits, "pixels": pixels, "warps": 1, "blocks_per_warp": 1}
    knobs |= {"lanes": "1x2x16", "channels": 4, "format": "csr", "pad_to": 1}
    case = Case(SHAPES["3x3"], 0.1, "", 1)
    if shared:
        assert kernel("cuda_pixel_nonzero", case, GPU, **knobs).knobs["splits"] == splits
    else:
        with pytest.raises(InputError, match="cannot share"):
            kernel("cuda_pixel_nonzero", case, GPU, **knobs)
