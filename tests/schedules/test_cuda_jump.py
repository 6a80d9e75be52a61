"""What only the jump template has: its code, that does not depend on the filter, its copies and its limits."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
import tvm

from tests.cases import EPILOGUES, Case
from tests.cuda_on_cpu import cuda_source
from tests.schedules.running import GPU, kernel, shared_bytes
from tests.schedules.test_cuda_limits import LARGE, SHAPES, SMALL_GPU, gpu, has_cuda
from tests.schedules.test_templates import check
from tvm_sparse.compute.jump_filter import Window
from tvm_sparse.compute.warp_tiling import WarpTiling
from tvm_sparse.errors import InputError
from tvm_sparse.schedules import jump_cost, template
from tvm_sparse.schedules.jump_ptx import jump_function
from tvm_sparse.tvm_support import check_cuda_modules, cuda_build
from tvm_sparse.workload import ConvWorkload, Epilogue

needs_gcc = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
JUMP = template("cuda_jump")
FULL = Epilogue(bias=True, residual=True, activation="relu")
LAYER = ConvWorkload(3, 40, 9, 11, 24, 3, 3, padding=(1, 1, 1, 1), epilogue=FULL)
KNOBS = {"lanes": "1x2x16", "pixels": "1x2x1", "channels": 5, "rows": 4, "warps": 2, "splits": 2}


@needs_gcc
@pytest.mark.parametrize("splits", [1, 2, 4])
@pytest.mark.parametrize("warps", [1, 3])
@pytest.mark.parametrize("rows", [4, 8])
def test_warps_share_channels_and_rows(rows, warps, splits):
    changes = {**KNOBS, "rows": rows, "warps": warps, "splits": splits}
    assert check("cuda_jump", Case(LAYER, 0.2, "rows and channels", 3), GPU, **changes)


@needs_gcc
@pytest.mark.parametrize("pixels", ["1x1x1", "2x2x1", "1x7x1", "1x2x2"])
@pytest.mark.parametrize(
    "shape",
    [
        {"stride": (2, 2)},
        {"dilation": (2, 3), "padding": (2, 3, 2, 3)},
        {"groups": 2, "stride": (1, 2)},
        {"r": 1, "s": 7, "padding": (0, 3, 0, 3)},
        {"r": 5, "s": 1, "padding": (2, 0, 2, 0)},
        {"r": 1, "s": 1, "padding": (0, 0, 0, 0)},
        {"h": 1, "w": 99, "r": 1, "s": 1, "padding": (0, 0, 0, 0)},
    ],
    ids=str,
)
def test_pixels_of_a_thread_share_windows(shape, pixels):
    fields = {name: getattr(LAYER, name) for name in ("n", "c", "h", "w", "k", "r", "s", "padding")}
    case = Case(ConvWorkload(**{**fields, **shape}, epilogue=EPILOGUES[6]), 0.3, "channels", 4)
    if int(pixels[2]) > case.workload.p:
        pixels = "1x1x4"
    assert check("cuda_jump", case, GPU, **{**KNOBS, "pixels": pixels, "warps": 3})


def test_the_code_is_there_once_and_the_same_for_every_filter():
    sources = [
        cuda_source(kernel("cuda_jump", Case(LAYER, density, "", 3), GPU, **KNOBS).func, GPU) for density in (0.1, 0.4)
    ]
    texts = [re.findall(r"void (jumps_\w+)\(.*?\n\}", source, re.DOTALL) for source in sources]
    assert len(texts[0]) == 1 and texts[0] == texts[1]
    for source in sources:
        body = source.rsplit("__global__", 1)[1]
        assert len(re.findall(r"jumps_\w+\(", body)) == 1
        # Both kinds of copies are asynchronous: 16 bytes of a program, a row's 4 bytes and pixels of the input.
        assert re.search(r"cp_async_legacy_cg_16\w*\([^;]*program_ptr", body)
        assert re.search(r"cp_async_legacy\w*\([^;]*x_ptr", body)


def test_a_nonzero_is_one_jump_to_its_multiply_adds():
    tiling = WarpTiling(LAYER, (1, 2, 16), (1, 4, 1), 5, 1, adjacent=True)
    window = Window.of(tiling)
    name, text = jump_function(window, 8)
    pieces = re.split(r"\n    (\w+):(?= |\n)", text.split("brx.idx.uni target, targets;", 1)[1])
    code = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    assert len(code) == 3 * 8 + 2
    for tap in range(3):
        for v in range(8):
            lines = [line.strip() for line in code[f"tap{tap}_{v}"].strip().split("\n")]
            sums = [4 * v + pixel for pixel in range(4)]
            inputs = [tap + pixel for pixel in range(4)]
            assert lines[:4] == [f"fma.rn.f32 %{n}, word, x{x}, %{n};" for n, x in zip(sums, inputs, strict=True)]
            assert lines[-1] == "brx.idx.uni target, targets;" and len(lines) == 4 + 4
    assert len(re.findall(r"ld\.shared\.f32", code["load"])) == len(window.loads) == 6
    assert text.count("brx.idx") == 3 * 8 + 2
    assert jump_function(window, 8)[0] == name != jump_function(window, 4)[0]


@pytest.mark.parametrize("jumps", [1, 3, 40])
def test_pieces_of_code_may_share_jumps(jumps):
    window = Window.of(WarpTiling(LAYER, (1, 2, 16), (1, 4, 1), 5, 1, adjacent=True))
    _, text = jump_function(window, 8, jumps)
    pieces = 3 * 8 + 1
    assert text.count("brx.idx") == min(jumps, pieces)
    assert text.count("bra.uni") == 1 + max(0, pieces - jumps)
    assert text.count("fma.rn") == 3 * 8 * 4


@needs_gcc
@pytest.mark.parametrize("jumps", jump_cost.JUMPS)
def test_every_number_of_jumps_is_right(jumps):
    assert check("cuda_jump", Case(LAYER, 0.2, "rows", 5), GPU, **{**KNOBS, "rows": 8, "jumps": jumps})


def test_tables_of_jumps_fit_the_cache_by_default():
    chosen = {pieces: jump_cost.jumps(pieces) for pieces in (4, 12, 24, 48, 96, 120)}
    assert chosen == {4: 0, 12: 0, 24: 8, 48: 8, 96: 1, 120: 1}


@pytest.mark.skipif(not has_cuda(), reason="no nvcc here")
@pytest.mark.parametrize("shape", SHAPES)
def test_machine_code_comes_out(shape):
    case = Case(SHAPES[shape], 0.1, "rows", 1)
    if reason := JUMP.applies(case.workload, GPU):
        pytest.skip(reason)
    with cuda_build("sm_90", compiler="nvcc") as build:
        executable = tvm.compile(tvm.IRModule({"main": kernel("cuda_jump", case, GPU).func}), target=build.target)
    check_cuda_modules(executable, build)


@pytest.mark.parametrize("limits", [{"max_shared_memory_per_block": 49152}, SMALL_GPU], ids=["48 KB", "small"])
@pytest.mark.parametrize("shape", [*SHAPES, *LARGE])
def test_the_default_fits_whatever_the_workload(shape, limits):
    workload, target = {**SHAPES, **LARGE}[shape], gpu(**limits)
    if JUMP.applies(workload, target):
        return
    for density in (0.1, 1.0):
        built = kernel("cuda_jump", Case(workload, density, "rows", 1), target) if shape in SHAPES else None
        knobs = built.knobs if built else JUMP.default(workload, density, target)
        needed = shared_bytes(built) if built else JUMP.shared_bytes(JUMP.tiling(workload, knobs), knobs, 0)
        assert needed <= limits["max_shared_memory_per_block"]
        assert int(knobs["warps"]) * int(knobs["splits"]) * 32 <= limits.get("max_threads_per_block", 1024)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warps": 32}, "2048 threads a block, 1024 at most"),
        ({"channels": 40, "pixels": "1x7x1", "rows": 16, "warps": 1}, "bytes of shared memory a block"),
        ({"pixels": "2x7x1", "rows": 12, "warps": 1, "splits": 1, "channels": 1}, "168 sums a thread"),
        ({"rows": 44, "pixels": "1x2x1", "warps": 1, "splits": 1, "channels": 1}, "132 pieces of code"),
        ({"pixels": "1x7x1", "rows": 16, "warps": 16, "splits": 1, "channels": 1}, "registers a block"),
        ({"splits": 16, "warps": 1, "channels": 1}, "16 warps cannot share 8 sums"),
        ({"warps": 16, "splits": 1}, "half a block's 64 channels would be idle"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(InputError, match=re.escape(message)):
        kernel("cuda_jump", Case(LAYER, 0.1, "", 1), gpu(max_shared_memory_per_block=49152), **{**KNOBS, **changes})


def test_windows_of_too_many_inputs_are_refused():
    case = Case(ConvWorkload(1, 8, 64, 16, 8, 24, 1), 0.1, "", 1)
    knobs = {"lanes": "1x32x1", "pixels": "1x4x7", "channels": 1, "rows": 4, "warps": 1, "splits": 1, "jumps": 0}
    with pytest.raises(InputError, match="325 registers a thread, 255 at most"):
        kernel("cuda_jump", case, GPU, **knobs)


@needs_gcc
def test_a_kernel_of_many_rows_is_taken_tap_by_tap():
    case = Case(ConvWorkload(1, 8, 64, 16, 8, 25, 1), 0.1, "", 1)
    assert len(Window.of(JUMP.tiling(case.workload, JUMP.default(case.workload, 0.1, GPU))).places) == 1
    assert check("cuda_jump", case, GPU)


def test_what_does_not_apply_says_why():
    half = ConvWorkload(2, 8, 9, 9, 8, 3, 3, dtype="float16")
    assert JUMP.applies(half, GPU) == "only float32, not float16"
    odd = ConvWorkload(2, 8, 9, 9, 6, 3, 3, groups=2)
    assert JUMP.applies(odd, GPU) == "3 output channels a group are no multiple of 4"
    old = tvm.target.Target({"kind": "cuda", "arch": "sm_75", "max_threads_per_block": 1024, "thread_warp_size": 32})
    assert JUMP.applies(LAYER, old) == "its copies need sm_80 or later"


def test_programs_longer_than_expected_get_smaller_chunks():
    """Nonzeros of one chunk only, more than evenly spread ones would leave room for."""
    workload = ConvWorkload(1, 64, 8, 8, 32, 3, 3)
    weight = np.zeros(workload.filter_shape, np.float32)
    weight[:, :8] = 1
    target = gpu(max_shared_memory_per_block=24 * 1024)
    expected = int(JUMP.default(workload, float((weight != 0).mean()), target)["channels"])
    built = JUMP.kernel(workload, weight, target)
    assert int(built.knobs["channels"]) <= expected
    assert shared_bytes(built) <= 24 * 1024


def test_more_zeros_take_less_time_by_rule():
    knobs = JUMP.default(LAYER, 0.1, GPU)
    times = [JUMP.estimate_us(LAYER, density, knobs, GPU) for density in (0.02, 0.1, 0.4)]
    assert times == sorted(times) and times[0] < times[2]
    assert JUMP.estimate_us(LAYER, 0.1, {**knobs, "warps": 64}, GPU) == float("inf")
    assert jump_cost.splits(ConvWorkload(1, 3, 5, 5, 8, 3, 3)) == (1, 2)
