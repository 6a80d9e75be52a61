"""Template cuda_row: linear layers and whatever else has a single output pixel an image."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from tests.cases import Case, seeded_choose
from tests.schedules.running import GPU, kernel
from tests.schedules.test_templates import check, drawn_knobs
from tvm_sparse.compute.row_conv import RowTiling, pack_rows
from tvm_sparse.errors import InputError
from tvm_sparse.schedules import template
from tvm_sparse.tvm_support import cuda_target
from tvm_sparse.workload import ConvWorkload, Epilogue

needs_gcc = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
LINEAR = ConvWorkload(1, 300, 1, 1, 24, 1, 1, epilogue=Epilogue(bias=True, activation="relu"))
CASES = {
    "linear": (LINEAR, {}),
    "batch": (replace(LINEAR, n=6), {"images": 3, "rows": 4, "own_rows": 1}),
    "rows of a thread": (replace(LINEAR, n=2), {"images": 2, "rows": 4, "own_rows": 3, "chunks": 2}),
    "chunks that end early": (replace(LINEAR, n=2, c=301), {"images": 2, "chunks": 4}),
    "empty chunks": (replace(LINEAR, c=40), {"chunks": 16}),
    "part of a warp": (LINEAR, {"lanes": 4, "rows": 6, "own_rows": 2, "unroll": 8}),
    "residual": (replace(LINEAR, epilogue=Epilogue(True, True, "silu")), {"rows": 12, "own_rows": 1}),
    "a prime number of rows": (replace(LINEAR, k=23), {}),
    "the whole image": (
        ConvWorkload(2, 6, 5, 4, 10, 5, 4, epilogue=Epilogue(activation="clip", bounds=(-1.0, 1.0))),
        {},
    ),
    "groups and padding": (ConvWorkload(2, 8, 3, 3, 12, 5, 4, padding=(1, 1, 1, 0), groups=2), {"chunks": 2}),
    "dilation and stride": (ConvWorkload(1, 8, 5, 5, 12, 3, 3, stride=(2, 2), dilation=(2, 2)), {}),
    "float16": (replace(LINEAR, dtype="float16", n=2), {}),
    "bfloat16": (replace(LINEAR, dtype="bfloat16", n=2), {"images": 2}),
}


@needs_gcc
@pytest.mark.parametrize("name", CASES)
def test_it_is_right(name):
    workload, changes = CASES[name]
    assert check("cuda_row", Case(workload, 0.2, "rows", 3), GPU, **changes)


@needs_gcc
@pytest.mark.parametrize("density", [0.0, 0.03, 1.0])
def test_any_density(density):
    assert check("cuda_row", Case(LINEAR, density, "rows and channels", 3), GPU)


@needs_gcc
def test_drawn_knobs():
    choose, passed = seeded_choose(5), 0
    for seed in range(8):
        n, c, k = choose((1, 2, 6)), choose((1, 33, 64, 200)), choose((1, 7, 30, 32))
        case = Case(replace(LINEAR, n=n, c=c, k=k), 0.3, "", seed)
        passed += check("cuda_row", case, GPU, **drawn_knobs("cuda_row", case, GPU))
    assert passed >= 2


def test_neighbouring_nonzeros_are_in_different_banks():
    weight = Case(replace(LINEAR, c=4096), 0.1, "", 1).weight()
    packed = pack_rows(weight, RowTiling(replace(LINEAR, c=4096), 32, 1, 1))
    banks = packed.offsets.reshape(-1, 32).astype(int) % 32
    conflicts = [
        max(len(np.unique(row[banks[i] == bank])) for bank in range(32))
        for i, row in enumerate(packed.offsets.reshape(-1, 32))
    ]
    assert np.mean(conflicts) < 2.2 < 3 < np.mean(_conflicts_unsorted(weight))


def _conflicts_unsorted(weight: np.ndarray) -> list[int]:
    columns = np.flatnonzero(weight[0].reshape(-1))
    return [np.bincount(columns[i : i + 32] % 32).max() for i in range(0, len(columns), 32)]


@pytest.mark.parametrize(
    ("workload", "target", "reason"),
    [
        (replace(LINEAR, w=2), GPU, "2 output pixels"),
        (replace(LINEAR, dtype="float64"), GPU, "not float64"),
        (LINEAR, cuda_target("sm_90").host, "not a CUDA GPU"),
    ],
)
def test_what_it_cannot_run(workload, target, reason):
    assert reason in template("cuda_row").applies(workload, target)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunks": 1}, "bytes of shared memory"),
        ({"unroll": 16}, "products a step"),
        ({"rows": 2, "own_rows": 8}, "sums a thread"),
        ({"rows": 64}, "threads a block"),
        ({"rows": 24, "own_rows": 2}, "do not divide 24"),
    ],
)
def test_knobs_beyond_the_limits_are_refused(changes, message):
    case = Case(replace(LINEAR, n=16, c=9216), 0.1, "", 1)
    fitting = {"lanes": 32, "rows": 4, "own_rows": 1, "images": 16, "chunks": 64, "unroll": 1}
    assert kernel("cuda_row", case, GPU, **fitting)
    with pytest.raises(InputError, match=message):
        kernel("cuda_row", case, GPU, **{**fitting, **changes})


def test_the_defaults_of_linear_layers_fill_a_gpu():
    for n, c, k in ((1, 9216, 4096), (1, 4096, 1000), (32, 9216, 4096), (32, 4096, 1000), (1, 25088, 4096)):
        workload = ConvWorkload(n, c, 1, 1, k, 1, 1)
        knobs = template("cuda_row").default(workload, 0.1, GPU)
        blocks = n // int(knobs["images"]) * (k // (int(knobs["rows"]) * int(knobs["own_rows"])))
        assert 100 <= blocks <= 512 and int(knobs["rows"]) * int(knobs["lanes"]) >= 128, knobs
