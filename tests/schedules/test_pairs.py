"""cuda_pixel on pairs of 16-bit pixels: right whatever the layer, in the CUDA instructions that make it fast."""

from __future__ import annotations

import shutil

import pytest
from hypothesis import HealthCheck, assume, given, settings

from tests.cases import EPILOGUES, TOLERANCE, Case, cases, choose_knobs, seeded, seeded_choose
from tests.cuda_on_cpu import cuda_source
from tests.schedules.running import GPU, kernel, run_kernel
from tvm_sparse.compute.pair_tiling import pair_axis
from tvm_sparse.errors import InputError
from tvm_sparse.schedules import template
from tvm_sparse.schedules.cuda_tiles import DENSE_FROM
from tvm_sparse.workload import ConvWorkload

SAME = (1, 1, 1, 1)
LAYERS = {
    "rows of 14": (
        {"n": 2, "c": 16, "h": 14, "w": 14, "r": 3, "s": 3, "padding": SAME},
        {"lanes": "1x2x16", "pixels": "1x7x1", "channels": 4, "pad_to": 4},
    ),
    "three images": (
        {"n": 3, "c": 16, "h": 14, "w": 14, "r": 3, "s": 3, "padding": SAME, "epilogue": EPILOGUES[6]},
        {"lanes": "1x2x16", "pixels": "1x7x1", "channels": 4, "pad_to": 2},
    ),
    "rows of 56": (
        {"n": 4, "c": 6, "h": 56, "w": 56, "r": 3, "s": 3, "padding": SAME},
        {"lanes": "1x8x4", "pixels": "1x1x14", "channels": 2, "pad_to": 1},
    ),
    "rows of 7": (
        {"n": 5, "c": 6, "h": 7, "w": 7, "r": 3, "s": 3, "padding": SAME},
        {"lanes": "4x1x8", "pixels": "1x7x1", "channels": 3, "pad_to": 1},
    ),
    "stride 2": (
        {"n": 4, "c": 6, "h": 17, "w": 15, "r": 3, "s": 3, "padding": SAME, "stride": (2, 2)},
        {"lanes": "1x4x8", "pixels": "2x2x1", "channels": 3, "pad_to": 1},
    ),
    "groups": (
        {"n": 2, "c": 8, "h": 9, "w": 8, "r": 3, "s": 3, "padding": SAME, "groups": 2},
        {"lanes": "1x4x8", "pixels": "1x2x1", "channels": 2, "pad_to": 1, "warps": 2},
    ),
    "pointwise": (
        {"n": 2, "c": 16, "h": 1, "w": 196},
        {"lanes": "1x1x32", "pixels": "1x1x2", "channels": 8, "pad_to": 2},
    ),
    "pointwise, copies of a word": (
        {"n": 2, "c": 7, "h": 1, "w": 26},
        {"lanes": "2x1x16", "pixels": "1x1x1", "channels": 7, "pad_to": 1},
    ),
    "pointwise, odd rows": (
        {"n": 2, "c": 7, "h": 1, "w": 49},
        {"lanes": "1x1x32", "pixels": "1x1x2", "channels": 7, "pad_to": 1},
    ),
}
quick = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
needs_gcc = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")


def layer(name: str, dtype: str) -> tuple[Case, dict[str, int | str]]:
    sizes, knobs = LAYERS[name]
    workload = ConvWorkload(**{"k": 8, "r": 1, "s": 1, "dtype": dtype, **sizes})
    return Case(workload, 0.2, "rows", 1), {"warps": 4, "blocks_per_warp": 2, **knobs}


def error(case: Case, **changes: int | str) -> float:
    return case.error(run_kernel(kernel("cuda_pixel", case, GPU, **changes), case, GPU))


@needs_gcc
@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, "float16") for name in LAYERS), ("rows of 14", "bfloat16"), ("rows of 7", "bfloat16")],
)
def test_pairs_are_summed_right(name, dtype):
    case, knobs = layer(name, dtype)
    exact = error(case, **{**knobs, "pairs": "no"})
    assert exact < TOLERANCE[dtype]
    # The same sums in another order, rounded once: nothing is lost.
    assert error(case, **{**knobs, "pairs": "float32"}) == pytest.approx(exact, rel=0.02)
    assert exact < error(case, **{**knobs, "pairs": dtype}) < (TOLERANCE[dtype] if dtype == "float16" else 4e-3)


@needs_gcc
@settings(quick, max_examples=12)
@given(case=cases("float16"))
def test_the_default_is_right(case):
    assume(pair_axis(case.workload))
    built = kernel("cuda_pixel", case, GPU)
    dense = case.density > DENSE_FROM
    assert built.knobs["pairs"] == ("no" if dense else "float16")
    assert case.wrong(run_kernel(built, case, GPU)) is None


@needs_gcc
@pytest.mark.slow
def test_any_knobs_are_right():
    passed = set()
    for case in seeded(6, 60, "float16"):
        space = template("cuda_pixel").space(case.workload, GPU)
        for draw in range(20):
            knobs = choose_knobs(seeded_choose(case.seed + draw), {**space, "pairs": space["pairs"][1:] or ("no",)})
            if knobs["pairs"] == "no":
                break
            try:
                built = kernel("cuda_pixel", case, GPU, **knobs)
            except InputError:
                continue
            assert case.wrong(run_kernel(built, case, GPU)) is None, knobs
            passed.add((knobs["pairs"], pair_axis(case.workload)))
            break
    assert passed >= {(pairs, axis) for pairs in ("float32", "float16") for axis in ("images", "columns")}


@needs_gcc
def test_the_error_of_many_nonzeros_in_float16():
    """The most that the template takes, all of one chunk."""
    workload = ConvWorkload(2, 128, 8, 8, 8, 1, 1, dtype="float16")
    knobs = {"lanes": "1x8x4", "pixels": "1x1x1", "channels": 128, "warps": 4, "blocks_per_warp": 1, "pad_to": 1}
    case = Case(workload, 1.0, "", 1)
    assert error(case, **knobs, pairs="float16", format="csr") < TOLERANCE["float16"]
    more = Case(ConvWorkload(2, 129, 8, 8, 8, 1, 1, dtype="float16"), 1.0, "", 1)
    with pytest.raises(InputError, match="129 nonzeros of a row and chunk summed in float16, 128 at most"):
        kernel("cuda_pixel", more, GPU, **{**knobs, "channels": 129}, pairs="float16", format="csr")


@pytest.mark.parametrize(
    ("dtype", "pairs", "sums", "calls_a_step"),
    [
        ("float16", "float16", "__hfma2(", 4 * 7),
        ("float16", "float32", "(float)pair.y", 4 * 7),
        ("bfloat16", "float32", "(float)pair.y", 4 * 7),
        ("bfloat16", "bfloat16", "__hfma2(", 7),
    ],
)
def test_a_lane_loads_words(dtype, pairs, sums, calls_a_step):
    case, knobs = layer("rows of 14", dtype)
    source = cuda_source(kernel("cuda_pixel", case, GPU, **{**knobs, "pairs": pairs}).func, GPU)
    word = {"float16": "half2", "bfloat16": "nv_bfloat162"}[dtype]
    assert sums in source
    # Two row blocks a warp, seven words a thread, four nonzeros a step.
    calls = [line for line in source.splitlines() if line.strip().startswith(("pair_sum", "pair_step"))]
    assert len(calls) == 2 * calls_a_step and all(f"*({word}*)" in call for call in calls)


def test_what_has_no_pairs_keeps_single_elements():
    odd = ConvWorkload(1, 8, 9, 9, 8, 3, 3, dtype="float16")
    assert template("cuda_pixel").space(odd, GPU)["pairs"] == ("no",)
    assert "pairs" not in template("cuda_pixel").space(ConvWorkload(2, 8, 9, 9, 8, 3, 3), GPU)
    with pytest.raises(
        InputError, match="pairs need 16-bit elements, and two images or a pointwise layer with even rows"
    ):
        kernel("cuda_pixel", Case(odd, 0.2, "", 1), GPU, pairs="float32")


@needs_gcc
@pytest.mark.parametrize("name", ["cuda_pixel", "cuda_pixel_nonzero", "cuda_pattern"])
def test_a_tile_of_a_single_element_is_placed(name):
    """TVM 0.27 forgets a shared buffer of four bytes."""
    sizes = {"n": 2, "c": 2, "h": 1, "w": 1, "k": 2, "r": 1, "s": 1, "dtype": "float16"}
    for workload in (ConvWorkload(**sizes), ConvWorkload(**{**sizes, "c": 1, "padding": (0, 1, 0, 1)})):
        if template(name).applies(workload, GPU):
            continue
        case = Case(workload, 1.0, "", 1)
        staged = {"channels": 1, **({"stages": 1} if name == "cuda_pattern" else {})}
        paired = {**staged, "pairs": "float32"} if name != "cuda_pixel_nonzero" else {}
        for changes in ({}, staged, paired):
            assert case.wrong(run_kernel(kernel(name, case, GPU, **changes), case, GPU)) is None
