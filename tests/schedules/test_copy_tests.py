"""Copies are tested once for all runs of a thread: how often, by the branches in the CUDA text of a kernel."""

from __future__ import annotations

import re

import pytest

from tests import cuda_on_cpu
from tests.cases import Case
from tests.schedules.running import GPU, kernel
from tvm_sparse.workload import ConvWorkload

KNOBS = {"lanes": "1x2x16", "pixels": "1x7x1", "warps": 8, "pad_to": 2}


def branches(template: str, channels: int, c: int, **knobs: int | str) -> tuple[int, int]:
    """Tests that begin on a line of their own, and asynchronous copies of the input."""
    workload = ConvWorkload(2, c, 14, 14, 16, 3, 3, padding=(1, 1, 1, 1))
    built = kernel(template, Case(workload, 0.2, "rows", 1), GPU, **KNOBS, channels=channels, **knobs)
    source = cuda_on_cpu.cuda_source(built.func, GPU)
    body = source[source.rindex("main_kernel(") :]
    return len(re.findall(r"^ *if \(", body, re.MULTILINE)), len(re.findall(r"cp_async_\w+\(.* x_ptr", body))


@pytest.mark.parametrize(
    ("template", "more"),
    [("cuda_pixel", {}), ("cuda_pixel_nonzero", {"splits": 2, "split_over": "blocks"})],
)
def test_the_tests_do_not_grow_with_the_copies(template, more):
    few, many = (branches(template, channels, 32, **more) for channels in (4, 16))
    assert many[1] > few[1]
    assert many[0] <= few[0]


def test_channels_that_are_not_there_are_tested_one_by_one():
    whole, ragged = (branches("cuda_pixel", 8, c) for c in (16, 12))
    assert ragged[0] > whole[0]


@pytest.mark.parametrize(
    "workload",
    [
        ConvWorkload(1, 4, 9, 9, 2, 3, 3),
        ConvWorkload(2, 4, 1, 64, 2, 1, 1),
        ConvWorkload(4, 4, 5, 1, 2, 1, 2, padding=(0, 1, 0, 0)),
    ],
    ids=str,
)
def test_starts_of_one_row_block_are_no_run_of_copies(workload):
    """With one row block a thread copies neighbouring elements, chunk by chunk, which TVM takes for something else."""
    knobs = {"warps": 1, "blocks_per_warp": 1, "format": "column_vector:2", "splits": 2, "split_over": "warps"}
    knobs |= {"lanes": "1x1x32", "pixels": "1x1x1", "channels": 2, "pad_to": 1}
    built = kernel("cuda_pixel_nonzero", Case(workload, 0.5, "", 1), GPU, **knobs)
    assert "cp_async" in cuda_on_cpu.cuda_source(built.func, GPU)
