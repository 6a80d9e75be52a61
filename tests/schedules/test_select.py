"""Which template a layer gets that was never tuned."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tvm.target import Target

from tests.cases import seeded
from tests.schedules.running import CPU, GPU
from tvm_sparse.errors import InputError
from tvm_sparse.schedules import TEMPLATES, select, template
from tvm_sparse.workload import ConvWorkload

LAYER = ConvWorkload(1, 256, 14, 14, 256, 3, 3, padding=(1, 1, 1, 1))
LINEAR = ConvWorkload(1, 4096, 1, 1, 1000, 1, 1)
OPENCL = Target({"kind": "opencl", "max_threads_per_block": 256})


@pytest.mark.parametrize(
    ("workload", "density", "target", "name"),
    [
        (LAYER, 0.1, CPU, "cpu_vector"),
        (replace(LAYER, dtype="float16"), 0.1, CPU, "fallback"),
        (LAYER, 0.1, GPU, "cuda_pixel_nonzero"),
        (replace(LAYER, n=32), 0.1, GPU, "cuda_pixel"),
        (LAYER, 0.001, GPU, "cuda_pixel"),
        (LAYER, 1.0, GPU, "cuda_dense"),
        (replace(LAYER, c=3, k=64, r=7, s=7, stride=(2, 2)), 1.0, GPU, "cuda_dense"),
        (ConvWorkload(1, 128, 1, 784, 512, 1, 1), 0.1, GPU, "cuda_pattern"),
        (ConvWorkload(1, 256, 1, 196, 1024, 1, 1), 0.1, GPU, "cuda_pixel"),
        (replace(LAYER, groups=256), 1.0, GPU, "cuda_pixel"),
        (replace(LAYER, n=4, h=112, w=112), 0.1, GPU, "cuda_pixel"),
        (replace(LAYER, dtype="float64"), 0.1, GPU, "fallback"),
        (LINEAR, 0.1, GPU, "cuda_row"),
        (replace(LINEAR, n=32), 0.1, GPU, "cuda_row"),
        (LINEAR, 0.1, CPU, "cpu_vector"),
        (LAYER, 0.1, OPENCL, "fallback"),
    ],
)
def test_by_rule(workload, density, target, name):
    assert select(workload, density, target).name == name


def test_something_is_always_selected():
    for case in seeded(6, 200):
        for target in (CPU, GPU, OPENCL):
            assert select(case.workload, case.density, target).applies(case.workload, target) is None


@pytest.mark.parametrize(
    "kind", [{"kind": "c"}, {"kind": "opencl"}, {"kind": "vulkan"}, {"kind": "cuda", "arch": "sm_90"}]
)
def test_the_default_is_scheduled_on_every_kind_of_target(kind):
    target, case = Target(kind), seeded(7, 1)[0]
    chosen = select(case.workload, case.density, target)
    assert chosen.kernel(case.workload, case.weight(), target).template == chosen.name


def test_names():
    assert [chosen.name for chosen in TEMPLATES][-1] == "fallback"
    assert all(template(chosen.name) is chosen for chosen in TEMPLATES)
    with pytest.raises(InputError, match="unknown template 'magic': choose one of cpu_vector"):
        template("magic")


def test_arrays_beyond_int32_are_refused():
    with pytest.raises(InputError, match="input has more than 2146435072 elements"):
        select(ConvWorkload(1024, 64, 1024, 1024, 1, 1, 1), 0.1, CPU)
