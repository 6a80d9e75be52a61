"""What only the pattern template has: code that depends on the weights, its limits, and its two kinds of copies."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
import tvm
from tvm.target import Target

from tests.cases import Case, seeded
from tests.cuda_on_cpu import cuda_source
from tests.schedules.running import GPU, kernel, run_kernel
from tests.schedules.test_cuda_limits import LARGE, SHAPES, SMALL_GPU, gpu, has_cuda
from tests.schedules.test_templates import check, drawn_knobs
from tvm_sparse.compute.pattern_conv import PatternTiling, pattern_conv2d
from tvm_sparse.errors import InputError
from tvm_sparse.schedules import pattern_tile, template
from tvm_sparse.schedules.pattern_tile import best_tile, channels_within, row_groups
from tvm_sparse.tvm_support import check_cuda_modules, cuda_build
from tvm_sparse.workload import ConvWorkload, Epilogue

needs_gcc = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
PATTERN = template("cuda_pattern")
FULL = Epilogue(bias=True, residual=True, activation="relu")
LAYER = ConvWorkload(3, 12, 9, 11, 20, 3, 3, padding=(1, 1, 1, 1), epilogue=FULL)
POINTWISE = ConvWorkload(3, 12, 9, 11, 20, 1, 1, epilogue=FULL)


@needs_gcc
@pytest.mark.parametrize("order", ["groups", "tiles"])
@pytest.mark.parametrize("blocks", [0, 3])
@pytest.mark.parametrize("stages", [1, 2])
def test_tiles_over_images_and_chunks(stages, blocks, order):
    changes = {"images": 2, "rows": 4, "cols": 8, "channels": 5, "rows_per_group": 8}
    case = Case(LAYER, 0.2, "rows and channels", 1)
    assert check("cuda_pattern", case, GPU, **changes, stages=stages, blocks_per_sm=blocks, order=order)


@needs_gcc
@pytest.mark.parametrize(("stages", "channels"), [(1, 5), (2, 3)])
def test_blocks_may_start_at_different_chunks(stages, channels, monkeypatch):
    monkeypatch.setattr(pattern_tile, "PROCESSORS", 2)
    changes = {"images": 1, "rows": 4, "cols": 8, "channels": channels, "rows_per_group": 8, "rotate": 1}
    assert check("cuda_pattern", Case(LAYER, 0.2, "", 1), GPU, **changes, stages=stages)


@needs_gcc
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("stages", [0, 1, 2])
def test_a_pointwise_layer_with_and_without_a_staged_tile(stages, stride):
    workload = ConvWorkload(3, 12, 9, 11, 20, 1, 1, stride=(stride, stride), epilogue=FULL)
    changes = {"images": 1, "rows": 1, "cols": 32, "channels": 7, "rows_per_group": 16}
    assert check("cuda_pattern", Case(workload, 0.3, "rows", 2), GPU, **changes, stages=stages)


@needs_gcc
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("stages", [0, 1])
def test_16_bit_elements_one_by_one(stages, dtype):
    case = Case(ConvWorkload(**{**vars(POINTWISE), "dtype": dtype}), 0.3, "rows", 2)
    changes = {"images": 1, "rows": 1, "cols": 32, "channels": 7, "rows_per_group": 16, "pairs": "no"}
    assert check("cuda_pattern", case, GPU, **changes, stages=stages)


@needs_gcc
def test_drawn_knobs():
    passed = sum(check("cuda_pattern", case, GPU, **drawn_knobs("cuda_pattern", case, GPU)) for case in seeded(6, 5))
    assert passed >= 2


@needs_gcc
def test_weights_are_exact_in_the_code():
    workload = ConvWorkload(1, 1, 1, 32, 4, 1, 1)
    case = Case(workload, 1.0, "", 3)
    weight = np.float32([np.nextafter(np.float32(1), np.float32(2)), 1 / 3, -3.0e-39, 1e38]).reshape(4, 1, 1, 1)
    knobs = PATTERN.default(workload, 1.0, GPU)
    y = run_kernel(PATTERN.kernel(workload, weight, GPU, knobs), case, GPU)
    assert np.array_equal(y, weight[None, :, :, 0] * case.inputs()["x"][:, 0][:, None])


def test_an_input_element_is_loaded_once_for_all_channels_of_a_group():
    workload = ConvWorkload(2, 8, 14, 14, 64, 3, 3, padding=(1, 1, 1, 1))
    case = Case(workload, 0.3, "", 1)
    built = kernel("cuda_pattern", case, GPU, rows_per_group=32, channels=8, stages=1)
    source = cuda_source(built.func, GPU)
    weight = case.weight()
    used = sum(int(weight[rows].any(axis=0).sum()) for rows in (slice(32), slice(32, 64)))
    assert len(re.findall(r"^ *ld\.shared\.f32 x, ", source, re.MULTILINE)) == used
    assert len(re.findall(r"^ *fma\.rn\.f32 %\d+, x, ", source, re.MULTILINE)) == (weight != 0).sum()
    assert not built.constants.arrays


def test_too_many_nonzeros_are_refused():
    workload = ConvWorkload(1, 256, 14, 14, 256, 3, 3, padding=(1, 1, 1, 1))
    with pytest.raises(InputError, match=r"589824 nonzeros, \d+ at most( for so few pixels)?: choose another template"):
        PATTERN.kernel(workload, np.ones(workload.filter_shape, np.float32), GPU)


@pytest.mark.parametrize(
    ("workload", "changes", "message"),
    [
        (LAYER, {"images": 4, "rows": 9, "cols": 64}, "threads a block"),
        (LAYER, {"rows_per_group": 200}, "sums a thread"),
        (ConvWorkload(1, 512, 56, 56, 8, 3, 3), {"rows": 16, "cols": 56, "channels": 512}, "bytes of shared memory"),
        (ConvWorkload(1, 8, 9, 9, 12, 3, 3, groups=2), {"rows_per_group": 4}, "reach over two groups"),
        (ConvWorkload(1, 8, 9, 9, 12, 3, 3, dtype="float16"), {"stages": 2}, "two stages need elements of 4 bytes"),
        (LAYER, {"channels": 4, "stages": 2, "rotate": 1}, "3 chunks cannot rotate in pairs"),
        (LAYER, {"stages": 0}, "only a 1x1 filter"),
        (POINTWISE, {"stages": 0, "rows": 3}, "pixels are one row"),
    ],
)
def test_what_does_not_fit_is_refused(workload, changes, message):
    with pytest.raises(InputError, match=message):
        kernel("cuda_pattern", Case(workload, 0.02, "", 1), GPU, **changes)


@pytest.mark.parametrize("size", [7, 14, 28, 56, 13, 112])
def test_the_default_tile_keeps_lanes_busy_and_chunks_even(size):
    workload = ConvWorkload(32, 64, size, size, 64, 3, 3, padding=(1, 1, 1, 1))
    tile = best_tile(workload, 256, 32 * 1024)
    tiling = PatternTiling(workload, *tile, 1, 1)
    computed = np.prod(tiling.grid) * -(-tiling.pixels // 32) * 32
    assert workload.n * workload.p * workload.q >= 0.75 * computed
    channels = channels_within(workload, tile, 2, 64 * 1024)
    assert 64 % channels == 0
    assert PatternTiling(workload, *tile, channels, 1).elements * 8 <= 64 * 1024


@pytest.mark.parametrize("limits", [{"max_shared_memory_per_block": 49152}, SMALL_GPU], ids=["48 KB", "small"])
@pytest.mark.parametrize("shape", [*SHAPES, *LARGE])
def test_the_default_fits_whatever_the_workload(shape, limits):
    workload, target = {**SHAPES, **LARGE}[shape], gpu(**limits)
    if PATTERN.applies(workload, target) is not None:
        assert "shared memory" in str(PATTERN.applies(workload, target))
        return
    for density in (0.0, 0.1, 1.0):
        knobs = PATTERN.default(workload, density, target)
        tiling = PATTERN.tiling(workload, knobs)
        assert PATTERN.shared_bytes(tiling, knobs) <= limits["max_shared_memory_per_block"]
        assert tiling.pixels <= limits.get("max_threads_per_block", 1024)
        PATTERN.schedule(pattern_conv2d(tiling), tiling, knobs, target)


@pytest.mark.skipif(not has_cuda(), reason="no nvcc here")
@pytest.mark.parametrize(("dtype", "changes"), [("float32", {}), ("float16", {"pairs": "float32"})])
def test_as_many_sums_as_there_may_be(dtype, changes):
    workload = ConvWorkload(2, 32, 1, 196, pattern_tile.MOST_SUMS, 1, 1, dtype=dtype)
    case = Case(workload, 0.1, "", 1)
    rows = pattern_tile.MOST_SUMS // (2 if changes else 1)
    size = {"images": 1, "rows": 1, "cols": 64, "channels": 32, "stages": 0, "rows_per_group": rows, **changes}
    built = kernel("cuda_pattern", case, GPU, **size)
    with cuda_build("sm_80,sm_90") as build:
        check_cuda_modules(tvm.compile(tvm.IRModule({"main": built.func}), target=build.target), build)


@pytest.mark.skipif(not has_cuda(), reason="no nvcc here")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("stages", [0, 1, 2])
def test_machine_code_comes_out(stages, dtype):
    if dtype != "float32" and stages == 2:
        pytest.skip("copies of 4 bytes only")
    size = 1 if stages == 0 else 3
    workload = ConvWorkload(2, 32, 14, 14, 32, size, size, dtype=dtype, epilogue=FULL)
    weight = np.random.default_rng(0).standard_normal(workload.filter_shape).astype("float32")
    weight[np.abs(weight) < 1] = 0
    knobs = {**PATTERN.default(workload, 0.1, GPU), "channels": 16, "stages": stages, "blocks_per_sm": 2}
    built = PATTERN.kernel(workload, weight, GPU, knobs)
    with cuda_build("sm_90", compiler="nvcc") as build:
        check_cuda_modules(tvm.compile(tvm.IRModule({"main": built.func}), target=build.target), build)


def test_old_gpus_have_no_asynchronous_copies():
    turing = Target({"kind": "cuda", "arch": "sm_75", "max_threads_per_block": 1024, "thread_warp_size": 32})
    assert PATTERN.default(LAYER, 0.1, turing)["stages"] == 1
    with pytest.raises(InputError, match="sm_80"):
        kernel("cuda_pattern", Case(LAYER, 0.1, "", 1), turing, stages=2)


def test_row_groups_are_larger_for_many_pixels_and_whole_for_conv_groups():
    def chosen(n: int, density: float) -> int:
        workload = ConvWorkload(n, 64, 56, 56, 64, 3, 3, padding=(1, 1, 1, 1))
        return int(PATTERN.default(workload, density, GPU)["rows_per_group"])

    assert chosen(1, 0.1) < chosen(32, 0.1) <= chosen(512, 0.1)
    assert chosen(32, 0.4) <= chosen(32, 0.02)
    grouped = ConvWorkload(1, 96, 27, 27, 256, 5, 5, padding=(2, 2, 2, 2), groups=2)
    assert all(grouped.k_per_group % rows == 0 for rows in row_groups(grouped))
