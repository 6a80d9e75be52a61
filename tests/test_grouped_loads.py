"""What several stores need is loaded together, and is the same: CUDA code of kernels that wait, run on the CPU."""

from __future__ import annotations

import re

import pytest

from tests.cases import Case
from tests.schedules.running import GPU, kernel
from tests.waiting_kernels import EVERYTHING, checked_source
from tvm_sparse.tvm_support.grouped_loads import MOST_VALUES
from tvm_sparse.workload import ConvWorkload

#: Sums of a thread.
ROWS = 20
CASES = {
    "pointwise": (ConvWorkload(1, 12, 1, 70, 40, 1, 1, epilogue=EVERYTHING), {}),
    "staged": (ConvWorkload(1, 12, 7, 9, 40, 3, 3, padding=(1, 1, 1, 1), epilogue=EVERYTHING), {"stages": 2}),
    "pairs": (ConvWorkload(2, 12, 7, 9, 40, 3, 3, padding=(1, 1, 1, 1), dtype="float16", epilogue=EVERYTHING), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_kernels_that_load_together_are_right(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    workload, knobs = CASES[name]
    case = Case(workload, 0.2, "channels", 3)
    built = kernel("cuda_pattern", case, GPU, rows_per_group=ROWS, **knobs)
    source = checked_source(built, case, monkeypatch)
    lines = source.rsplit("__global__", 1)[1].split("\n")
    order = "".join("L" if "_grouped" in line.split(" = ")[0] else "S" for line in lines if _LOAD_OR_STORE.match(line))
    assert order.count("L") == ROWS * (2 if name == "pairs" else 1) and order.startswith("L" * (2 * MOST_VALUES) + "S")


_LOAD_OR_STORE = re.compile(r"\s*(residual_grouped\w*(\[0\])? = |out\w*\[|\*\(\w+\*\)\(out)")
