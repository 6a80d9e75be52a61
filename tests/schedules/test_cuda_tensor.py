"""Template cuda_tensor: dense 16-bit convolutions of few input channels, the instruction of tensor cores emulated."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from tests.cases import EPILOGUES, Case
from tests.schedules.running import GPU, kernel, run_kernel
from tvm_sparse.compute.tensor_conv import TensorTiling, tensor_filter
from tvm_sparse.errors import InputError
from tvm_sparse.schedules import select, template
from tvm_sparse.workload import ConvWorkload

RESNET = ConvWorkload(1, 3, 20, 24, 64, 7, 7, stride=(2, 2), padding=(3, 3, 3, 3), dtype="float16")
LAYERS = {
    "7x7": (RESNET, {"rows": 2, "pixel_tiles": 1, "channel_tiles": 2, "warps_along": 1, "warps_across": 2}),
    "rows that are not whole tiles": (
        replace(RESNET, n=2, k=40, h=13, w=22, epilogue=EPILOGUES[6]),
        {"rows": 2, "pixel_tiles": 2, "channel_tiles": 1, "warps_along": 1, "warps_across": 1},
    ),
    "3x3": (
        ConvWorkload(2, 3, 12, 18, 16, 3, 3, stride=(2, 2), padding=(1, 1, 1, 1), dtype="bfloat16"),
        {"rows": 1, "pixel_tiles": 1, "channel_tiles": 1, "warps_along": 2, "warps_across": 1},
    ),
    "11x11": (
        ConvWorkload(1, 3, 31, 36, 32, 11, 11, stride=(4, 4), padding=(2, 2, 2, 2), dtype="float16"),
        {"rows": 2, "pixel_tiles": 1, "channel_tiles": 2, "warps_along": 1, "warps_across": 1},
    ),
    "rows apart": (
        ConvWorkload(1, 2, 17, 14, 16, 3, 2, stride=(1, 2), dilation=(2, 1), dtype="float16"),
        {"rows": 4, "pixel_tiles": 1, "channel_tiles": 1, "warps_along": 1, "warps_across": 1},
    ),
}
needs_gcc = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")


@needs_gcc
@pytest.mark.parametrize("name", LAYERS)
def test_is_right(name):
    workload, knobs = LAYERS[name]
    case = Case(workload, 1.0, "", 1)
    result = run_kernel(kernel("cuda_tensor", case, GPU, **knobs), case, GPU)
    assert case.wrong(result) is None
    # Only the rounding of the result: sums are float32.
    assert case.error(result) < {"float16": 3e-4, "bfloat16": 2.3e-3}[workload.dtype]


def test_every_weight_has_one_place():
    tiling = TensorTiling(RESNET, 2, 8)
    weight = np.arange(1, np.prod(RESNET.filter_shape) + 1, dtype=np.float32).reshape(RESNET.filter_shape)
    laid = tensor_filter(weight, replace(tiling, workload=replace(RESNET, dtype="float32"))).values
    assert laid.shape == (11, 4, 32, 8)
    assert np.array_equal(np.sort(laid[laid != 0]), np.sort(weight.ravel()))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": "float32"}, "only float16 and bfloat16, not float32"),
        ({"stride": (1, 1)}, "an even column stride"),
        ({"w": 25}, "rows of even length"),
        ({"c": 64}, "steps of 16 columns, 32 at most"),
    ],
)
def test_what_it_does_not_take(change, reason):
    workload = replace(RESNET, **change)
    assert reason in (template("cuda_tensor").applies(workload, GPU) or "")
    assert select(workload, 1.0, GPU).name == "cuda_dense"


def test_it_runs_the_first_layer():
    assert select(RESNET, 1.0, GPU).name == "cuda_tensor"
    assert select(RESNET, 0.1, GPU).name != "cuda_tensor"
    knobs: dict[str, int | str] = {"rows": 8, "pixel_tiles": 1, "channel_tiles": 1, "warps_along": 4, "warps_across": 4}
    with pytest.raises(InputError, match="threads a block, 1024 at most"):
        kernel("cuda_tensor", Case(RESNET, 1.0, "", 1), GPU, **knobs)
    with pytest.raises(InputError, match="idle output channels"):
        kernel("cuda_tensor", Case(replace(RESNET, k=40), 1.0, "", 1), GPU, **{**knobs, "rows": 1})
