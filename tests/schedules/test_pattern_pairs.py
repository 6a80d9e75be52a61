"""cuda_pattern on pairs of 16-bit pixels: right whatever the layer, and the instructions that make it fast."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from tests.cases import EPILOGUES, TOLERANCE, Case, choose_knobs, seeded, seeded_choose
from tests.cuda_on_cpu import cuda_source
from tests.schedules.running import GPU, kernel, run_kernel
from tvm_sparse.compute.pair_tiling import pair_axis
from tvm_sparse.errors import InputError
from tvm_sparse.schedules import select, template
from tvm_sparse.workload import ConvWorkload

needs_gcc = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
SAME = {"r": 3, "s": 3, "padding": (1, 1, 1, 1)}
OWN = {"stages": 0, "cols": 32, "channels": 5}
LAYERS = {
    "pointwise": ({"n": 3, "h": 1, "w": 98, "epilogue": EPILOGUES[6]}, OWN),
    "pointwise, grouped": ({"n": 2, "h": 1, "w": 64, "groups": 4, "epilogue": EPILOGUES[1]}, {**OWN, "channels": 2}),
    "two rows of a warp": ({"n": 4, "h": 14, "w": 14, **SAME}, {"images": 2, "rows": 7, "cols": 14, "channels": 4}),
    "three images": (
        {"n": 3, "h": 9, "w": 7, **SAME, "epilogue": EPILOGUES[7]},
        {"images": 2, "rows": 3, "cols": 7, "channels": 5},
    ),
    "stride 2": ({"n": 2, "h": 17, "w": 15, **SAME, "stride": (2, 2)}, {"rows": 4, "cols": 8, "channels": 12}),
    "pointwise, odd rows": ({"n": 4, "h": 1, "w": 49}, {"rows": 1, "cols": 49, "channels": 6}),
}


def layer(name: str, dtype: str) -> tuple[Case, dict[str, int | str]]:
    sizes, knobs = LAYERS[name]
    workload = ConvWorkload(**{"c": 12, "k": 20, "r": 1, "s": 1, "dtype": dtype, **sizes})
    group = 5 if workload.groups > 1 else 8
    return Case(workload, 0.2, "rows", 1), {"images": 1, "rows": 1, "rows_per_group": group, "stages": 1, **knobs}


@needs_gcc
@pytest.mark.parametrize(
    ("name", "dtype", "pairs"),
    [
        *((name, "float16", pairs) for name in LAYERS for pairs in ("float32", "float16")),
        ("pointwise", "bfloat16", "float32"),
        ("three images", "bfloat16", "float32"),
    ],
)
def test_pairs_are_summed_right(name, dtype, pairs):
    case, knobs = layer(name, dtype)
    error = case.error(run_kernel(kernel("cuda_pattern", case, GPU, **knobs, pairs=pairs), case, GPU))
    assert error < TOLERANCE[dtype] / (1 if pairs == "float16" else 3)


@needs_gcc
@pytest.mark.slow
def test_any_knobs_are_right():
    passed = set()
    for number, case in enumerate(seeded(8, 80, "float16")):
        space = template("cuda_pattern").space(case.workload, GPU)
        # A kernel of more code overflows the stacks of the emulator's threads.
        if len(space.get("pairs", ())) < 2 or np.count_nonzero(case.weight()) > 3000:
            continue
        for draw in range(20):
            knobs = choose_knobs(
                seeded_choose(case.seed + draw), {**space, "pairs": (("float32", "float16")[number % 2],)}
            )
            try:
                built = kernel("cuda_pattern", case, GPU, **knobs)
            except InputError:
                continue
            assert case.wrong(run_kernel(built, case, GPU)) is None, knobs
            passed.add((knobs["pairs"], pair_axis(case.workload)))
            break
    assert passed == {(pairs, axis) for pairs in ("float32", "float16") for axis in ("images", "columns")}


@needs_gcc
def test_the_default_sums_pairs_and_is_right():
    for name in ("pointwise", "three images"):
        case, _ = layer(name, "float16")
        built = kernel("cuda_pattern", case, GPU)
        assert built.knobs["pairs"] == "float16"
        assert case.wrong(run_kernel(built, case, GPU)) is None


def test_a_nonzero_is_one_instruction_for_both_pixels():
    case, knobs = layer("pointwise", "float16")
    source = cuda_source(kernel("cuda_pattern", case, GPU, **knobs, pairs="float16").func, GPU)
    assert source.count(" fma.rn.f16x2 ") == np.count_nonzero(case.weight())
    used = case.weight()[:, :, 0, 0]
    groups = [used[first : first + 8] for first in range(0, 20, 8)]
    # A column of a group is loaded once.
    assert source.count(" ld.global.nc.b32 ") == sum(np.count_nonzero(group.any(axis=0)) for group in groups)


def test_a_row_of_many_nonzeros_gets_smaller_chunks():
    workload = ConvWorkload(2, 400, 1, 64, 8, 1, 1, dtype="float16")
    weight = np.random.default_rng(1).standard_normal(workload.filter_shape).astype("float16")
    weight[1:] *= np.random.default_rng(2).random(weight[1:].shape) < 0.05
    built = template("cuda_pattern").kernel(workload, weight, GPU)
    assert built.knobs["pairs"] == "float16" and int(built.knobs["channels"]) <= 128
    with pytest.raises(InputError, match="400 nonzeros of a row and chunk summed in float16, 128 at most"):
        template("cuda_pattern").kernel(workload, weight, GPU, {**built.knobs, "channels": 400})


def test_refusals_and_choice():
    case, knobs = layer("pointwise", "float16")
    with pytest.raises(InputError, match="no pairs in a tile that is staged"):
        kernel("cuda_pattern", case, GPU, **{**knobs, "stages": 1, "pairs": "float16"})
    assert template("cuda_pattern").space(layer("stride 2", "bfloat16")[0].workload, GPU)["pairs"] == ("no", "float32")
    large = ConvWorkload(32, 64, 56, 56, 64, 3, 3, padding=(1, 1, 1, 1), dtype="float16")
    assert select(large, 0.1, GPU).name == "cuda_pattern"
    assert select(ConvWorkload(**{**vars(large), "dtype": "bfloat16"}), 0.1, GPU).name == "cuda_pixel"
