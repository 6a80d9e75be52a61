"""Copies of a CPU's tiles with masked lanes: that they are, that they are right, and touch nothing beside the input."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tvm
from tvm.target import Target

from tests.cases import Case
from tests.schedules.running import CPU, kernel, run_kernel
from tvm_sparse.workload import ConvWorkload

LAYER = ConvWorkload(1, 16, 11, 13, 8, 3, 3, padding=(1, 1, 1, 1))
WORKLOADS = {
    "padded": LAYER,
    "strided": replace(LAYER, stride=(2, 2)),
    "strided, even": replace(LAYER, h=12, w=14, stride=(2, 2)),
    "stride 3": replace(LAYER, stride=(3, 3)),
    "stride 4, wide": replace(LAYER, h=30, w=34, r=5, s=5, stride=(4, 4), padding=(2, 3, 1, 0)),
    "stride 5": replace(LAYER, w=40, stride=(5, 5)),
    "dilated": replace(LAYER, dilation=(2, 2), padding=(2, 2, 2, 2)),
    "groups": replace(LAYER, groups=2, stride=(1, 2)),
    "pointwise": replace(LAYER, h=1, w=196, r=1, s=1, padding=(0, 0, 0, 0)),
    "strided pointwise": replace(LAYER, h=28, w=28, r=1, s=1, padding=(0, 0, 0, 0), stride=(2, 2)),
    "strided pointwise, odd": replace(LAYER, h=27, w=27, r=1, s=1, padding=(0, 0, 0, 0), stride=(2, 2)),
    "much padding": replace(LAYER, padding=(4, 5, 6, 7)),
    "narrow": replace(LAYER, w=3),
    "two images": replace(LAYER, n=2),
}
MASKED = set(WORKLOADS) - {"stride 5"}


@pytest.fixture(params=["begin", "end"])
def guarded(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A function that copies an array to where a page begins or ends beside one that nobody may read."""
    page, maps = mmap.PAGESIZE, []
    protect = ctypes.CDLL(None).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def place(array: np.ndarray) -> np.ndarray:
        pages = -(-array.nbytes // page)
        memory = mmap.mmap(-1, (pages + 2) * page)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        maps.append((memory, start, pages))
        offset = page if request.param == "begin" else (pages + 1) * page - array.nbytes
        placed = np.frombuffer(memory, array.dtype, array.size, offset).reshape(array.shape)
        placed[...] = array
        for guard in (start, start + (pages + 1) * page):
            assert protect(guard, page, 0) == 0
        return placed

    yield place
    for _, start, pages in maps:
        protect(start, (pages + 2) * page, mmap.PROT_READ | mmap.PROT_WRITE)


@pytest.mark.parametrize("layout", ["columns", "taps"])
@pytest.mark.parametrize("cols", [4, 16, 32])
@pytest.mark.parametrize("name", WORKLOADS)
def test_right_and_within_the_input(name: str, cols: int, layout: str, guarded: Any) -> None:
    case = Case(WORKLOADS[name], 0.3, "", 3)
    rows = 4 if cols == 4 else 2
    built = kernel("cpu_vector", case, CPU, rows=rows, cols=cols, layout=layout, channels=5)
    x = case.inputs()["x"]
    assert x.nbytes % 64 == 0  # TVM's tensors begin at multiples of it
    placed = tvm.runtime.from_dlpack(guarded(x))
    y = tvm.runtime.tensor(case.poisoned_output())
    executable = tvm.compile(tvm.IRModule({"main": built.func}), target=CPU)
    executable(placed, *map(tvm.runtime.tensor, built.constants.arrays), y)
    assert case.wrong(y.numpy()) is None


@pytest.mark.parametrize("layout", ["columns", "taps"])
@pytest.mark.parametrize("name", WORKLOADS)
def test_lanes_are_masked_where_they_may_be_outside(name: str, layout: str) -> None:
    case = Case(WORKLOADS[name], 0.3, "", 3)
    text = kernel("cpu_vector", case, CPU, rows=2, cols=16, layout=layout, channels=5).func.script()
    assert ("masked_load" in text) == (name in MASKED)
    assert ("Shuffle" in text) == (name in MASKED and case.workload.stride[1] > 1)
    assert "if_then_else" not in text or name not in MASKED


def test_whole_vectors_need_no_mask() -> None:
    workload = replace(LAYER, h=1, w=64, r=1, s=1, padding=(0, 0, 0, 0))
    text = kernel("cpu_vector", Case(workload, 0.3, "", 3), CPU, rows=1, cols=16, channels=16).func.script()
    assert "masked_load" not in text and "if_then_else" not in text


def test_a_tile_that_nothing_of_the_input_is_in() -> None:
    workload = replace(LAYER, h=1, r=2, s=1, stride=(2, 1), padding=(2, 0, 0, 0))
    case = Case(workload, 1.0, "", 3)
    built = kernel("cpu_vector", case, CPU, rows=1, cols=16, channels=16)
    assert "masked_load" not in built.func.script()
    assert case.wrong(run_kernel(built, case, CPU)) is None


@pytest.mark.parametrize(
    ("workload", "knobs"),
    [
        # A block of channels may reach over two groups, and then behind the last one.
        (ConvWorkload(1, 8, 9, 20, 12, 3, 3, groups=2), {"k_parts": 2, "format": "column_vector:2"}),
        (ConvWorkload(1, 64, 1, 1, 32, 1, 1), {"rows": 16, "cols": 1}),
        (ConvWorkload(1, 8, 40, 3, 8, 3, 3, padding=(1, 0, 1, 0)), {"rows": 32, "cols": 1}),
    ],
    ids=["groups", "one pixel", "one column"],
)
def test_what_is_no_vector_stays_as_it_is(workload: ConvWorkload, knobs: dict[str, Any]) -> None:
    case = Case(workload, 0.4, "", 3)
    built = kernel("cpu_vector", case, CPU, **knobs)
    assert "masked_load" not in built.func.script()
    assert case.wrong(run_kernel(built, case, CPU)) is None


@pytest.mark.parametrize(("mcpu", "masked"), [("x86-64", False), ("x86-64-v3", True), ("x86-64-v4", True)])
def test_short_vectors_have_no_masks(mcpu: str, masked: bool) -> None:
    target = Target({"kind": "llvm", "mcpu": mcpu, "num-cores": 2})
    for workload in (LAYER, replace(LAYER, w=1), WORKLOADS["strided"]):
        built = kernel("cpu_vector", Case(workload, 0.3, "", 3), target)
        assert tvm.compile(tvm.IRModule({"main": built.func}), target=target)
    assert ("masked_load" in built.func.script()) == masked
