"""What holds for every template: random convolutions against float64, on the CPU; CUDA code too, thread by thread."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cases import EPILOGUES, FORMATS, Case, cases, choose_knobs, seeded, seeded_choose
from tests.schedules.running import CPU, GPU, kernel, run_kernel
from tvm_sparse.errors import InputError
from tvm_sparse.schedules import TEMPLATES, template
from tvm_sparse.workload import ConvWorkload, Epilogue

TARGETS = {chosen.name: GPU if chosen.name.startswith("cuda") else CPU for chosen in TEMPLATES}
CUDA = ("cuda_pixel", "cuda_pixel_nonzero", "cuda_pattern", "cuda_jump", "fallback")
quick = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
needs_gcc = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")


def check(name: str, case: Case, target: object = None, **changes: int | str) -> bool:
    """Hold one case against float64; False if the template does not apply or refuses the knobs."""
    target = target or TARGETS[name]
    chosen = template(name)
    if chosen.applies(case.workload, target) or chosen.too_much(case.workload, (case.weight() != 0).mean()):
        return False
    try:
        built = kernel(name, case, target, **changes)
    except InputError:
        assert changes, f"{name} refuses its own default for {case}"
        return False
    complaint = case.wrong(run_kernel(built, case, target))
    assert complaint is None, f"{name} {built.knobs}: {complaint}"
    return True


def drawn_knobs(name: str, case: Case, target: object) -> dict[str, int | str]:
    return choose_knobs(seeded_choose(case.seed), template(name).space(case.workload, target))


@pytest.mark.parametrize("format_", FORMATS[:3])
@settings(quick, max_examples=25)
@given(case=cases())
def test_cpu_vector_is_right(format_, case):
    check("cpu_vector", case, format=format_)


@settings(quick, max_examples=25)
@given(case=cases())
def test_cpu_vector_is_right_with_any_knobs(case):
    check("cpu_vector", case, **drawn_knobs("cpu_vector", case, CPU))


@settings(quick, max_examples=25)
@given(case=cases())
def test_fallback_is_right_on_a_cpu(case):
    assert check("fallback", case)


@needs_gcc
@pytest.mark.parametrize("name", CUDA)
@settings(quick, max_examples=8)
@given(case=cases())
def test_cuda_code_is_right(name, case):
    check(name, case, GPU)


@needs_gcc
@pytest.mark.parametrize("name", CUDA[:2])
@settings(quick, max_examples=6)
@given(case=cases(), format_=st.sampled_from(FORMATS))
def test_cuda_code_is_right_in_every_format(name, case, format_):
    check(name, case, GPU, format=format_)


@pytest.mark.slow
@pytest.mark.parametrize("format_", FORMATS)
def test_cpu_vector_campaign(format_):
    passed = sum(check("cpu_vector", case, format=format_) for case in seeded(1, 300))
    assert passed >= 200  # column vectors reach over some groups


@pytest.mark.slow
def test_cpu_vector_knobs_campaign():
    passed = sum(check("cpu_vector", case, **drawn_knobs("cpu_vector", case, CPU)) for case in seeded(2, 300))
    assert passed >= 200


@pytest.mark.slow
def test_fallback_campaign():
    assert all(check("fallback", case) for case in seeded(3, 300))


def fitting_knobs_that_are_right(name: str, seed: int, count: int) -> int:
    """Of so many cases, how many a template ran with drawn knobs, after some draws that do not fit."""
    passed = 0
    for case in seeded(seed, count):
        if template(name).applies(case.workload, GPU) is not None:
            continue
        for draw in range(20):
            changes = choose_knobs(seeded_choose(case.seed + draw), template(name).space(case.workload, GPU))
            if check(name, case, GPU, **changes):
                passed += 1
                break
    return passed


@needs_gcc
@pytest.mark.parametrize("name", [*CUDA[:4], "cuda_dense"])
def test_any_knobs_that_fit_are_right(name):
    assert fitting_knobs_that_are_right(name, 12, 16) >= 8


@pytest.mark.slow
@needs_gcc
@pytest.mark.parametrize("name", CUDA[:4])
def test_cuda_knobs_campaign(name):
    assert fitting_knobs_that_are_right(name, 4, 100) >= 50


CORNERS = {
    "one pixel": ConvWorkload(1, 9, 1, 1, 7, 1, 1),
    "one weight": ConvWorkload(1, 1, 1, 1, 1, 1, 1),
    "one image row": ConvWorkload(2, 5, 1, 90, 6, 1, 9, padding=(0, 4, 0, 4)),
    "one column": ConvWorkload(1, 5, 40, 1, 6, 3, 1, padding=(1, 0, 1, 0)),
    "wide kernel": ConvWorkload(1, 3, 30, 30, 5, 11, 11, stride=(4, 4)),
    "last chunk short": ConvWorkload(1, 97, 8, 8, 11, 3, 3, padding=(1, 1, 1, 1)),
    "prime channels": ConvWorkload(2, 13, 9, 9, 37, 1, 1),
    "kernel as large as the input": ConvWorkload(1, 4, 6, 7, 5, 6, 7),
    "depthwise": ConvWorkload(1, 24, 10, 10, 24, 3, 3, padding=(1, 1, 1, 1), groups=24),
    "only the right side padded": ConvWorkload(1, 2, 1, 5, 3, 1, 1, padding=(0, 0, 0, 3)),
    "padding wider than the kernel": ConvWorkload(1, 2, 3, 3, 4, 2, 2, padding=(4, 3, 4, 5)),
}


@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("name", ["cpu_vector", "fallback"])
def test_corners_on_a_cpu(name, corner, density):
    assert check(name, Case(CORNERS[corner], density, "rows", 1), CPU)


@needs_gcc
@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("name", CUDA)
def test_corners_in_cuda_code(name, corner):
    case = Case(CORNERS[corner], 0.3, "rows and channels", 1)
    assert check(name, case, GPU) or template(name).applies(case.workload, GPU)


@needs_gcc
@pytest.mark.parametrize("over", ["warps", "blocks"])
@pytest.mark.parametrize("warps", [1, 2])
def test_nonzeros_are_split_over_warps_and_over_blocks(over, warps):
    workload = ConvWorkload(2, 40, 9, 11, 24, 3, 3, padding=(1, 1, 1, 1), epilogue=EPILOGUES[6])
    changes = {"split_over": over, "warps": warps, "channels": 3, "splits": 4, "blocks_per_warp": 4}
    assert check("cuda_pixel_nonzero", Case(workload, 0.2, "channels", 3), GPU, **changes)


def test_float16_keeps_float32_sums():
    workload = ConvWorkload(1, 64, 9, 9, 8, 3, 3, dtype="float16", epilogue=Epilogue(bias=True, activation="relu"))
    assert check("fallback", Case(workload, 0.5, "", 1), CPU)


def test_other_knobs_are_refused():
    for chosen in TEMPLATES:
        workload = CORNERS["one pixel" if chosen.name == "cuda_row" else "wide kernel"]
        if chosen.name == "cuda_tensor":
            workload = replace(workload, dtype="float16")
        case = Case(workload, 0.3, "", 1)
        target = TARGETS[chosen.name]
        default = chosen.default(case.workload, case.density, target)
        with pytest.raises(InputError, match="takes the knobs"):
            chosen.kernel(case.workload, case.weight(), target, {**default, "magic": 1})
        if "format" in default:
            with pytest.raises(InputError, match="unknown format"):
                chosen.kernel(case.workload, case.weight(), target, {**default, "format": "coo"})
        with pytest.raises(InputError, match="the filter has shape"):
            chosen.kernel(case.workload, case.weight()[1:], target, default)
