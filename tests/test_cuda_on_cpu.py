"""The emulated GPU notices what a kernel must not do."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests import cuda_on_cpu
from tests.cases import Case
from tests.cuda_on_cpu import cuda_source, outputs_of
from tests.schedules.running import GPU, arguments, kernel, shared_bytes
from tvm_sparse.workload import ConvWorkload

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
CASE = Case(ConvWorkload(2, 13, 9, 9, 37, 1, 1), 0.3, "", 1)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda arrays, shared: (arrays, shared), None),
        (lambda arrays, shared: (arrays | {"x": arrays["x"].ravel()[:-1]}, shared), "heap-buffer-overflow"),
        (lambda arrays, shared: (arrays | {"out": arrays["out"].ravel()[:-1]}, shared), "heap-buffer-overflow"),
        (lambda arrays, shared: (arrays, 64), "heap-buffer-overflow"),
    ],
    ids=["right", "input too short", "output too short", "shared memory too small"],
)
def test_memory_is_checked(change: Any, complaint: str | None, tmp_path: Path) -> None:
    built = kernel("cuda_pixel", CASE, GPU)
    given, shared = change(arguments(built, CASE), shared_bytes(built))
    if complaint is None:
        assert CASE.wrong(outputs_of(built.func, GPU, given, shared, tmp_path)["out"]) is None
        return
    with pytest.raises(AssertionError, match=complaint):
        outputs_of(built.func, GPU, given, shared, tmp_path)


def test_a_barrier_that_not_all_threads_reach_ends_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverging(func: Any, target: Any) -> str:
        source = cuda_source(func, target)
        assert "__syncthreads();" in source
        return source.replace("__syncthreads();", "if (threadIdx.x < 7) __syncthreads();")

    monkeypatch.setattr(cuda_on_cpu, "cuda_source", diverging)
    built = kernel("cuda_pixel", CASE, GPU)
    with pytest.raises(AssertionError, match="a barrier that not all threads reach"):
        outputs_of(built.func, GPU, arguments(built, CASE), shared_bytes(built), tmp_path)
