"""Where copies go, worked out anew in every step: the same results, from registers that the sums can have."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests import cuda_on_cpu
from tests.cases import Case
from tests.schedules.running import GPU, kernel, run_kernel
from tvm_sparse.cuda.paths import find_nvcc
from tvm_sparse.tvm_support import fresh_places
from tvm_sparse.tvm_support.fresh_places import with_fresh_places
from tvm_sparse.workload import ConvWorkload

SOURCE = """\
__global__ void main_kernel() {
  int before = ((int)threadIdx.x);
  for (int step = 0; step < 3; ++step) {
    if (step < 2) {
      places_from_here_on();
      int at = ((((int)blockIdx.x) * 4) + ((int)threadIdx.x));
      if (at < 7) {
        copy(((int)threadIdx.x));
      }

      copy(at);
    }
    use(((int)threadIdx.x));
  }
}
"""


def test_only_inside_the_block() -> None:
    lines = with_fresh_places(SOURCE).split("\n")
    assert "places_from_here_on" not in "".join(lines)
    assert [line.strip() for line in lines if "fresh_thread" in line and "asm" not in line] == [
        "int at = ((fresh_block * 4) + fresh_thread);",
        "copy(fresh_thread);",
    ]
    assert sum("asm volatile" in line for line in lines) == 1 and "  use(((int)threadIdx.x));" in "\n".join(lines)


def test_other_code_stays() -> None:
    other = SOURCE.replace("places_from_here_on();", "something_else();")
    assert with_fresh_places(other) == other


def test_declared_once_for_one_within_another() -> None:
    nested = SOURCE.replace("        copy(((", "        places_from_here_on();\n        copy(((")
    assert with_fresh_places(nested).count("int fresh_thread") == 1


@pytest.mark.parametrize("fresh", [0, 1])
def test_a_kernel_that_copies_ahead_is_right(fresh: int) -> None:
    case = Case(ConvWorkload(2, 12, 9, 11, 16, 3, 3, padding=(1, 1, 1, 1)), 0.2, "channels", 3)
    built = kernel("cuda_pattern", case, GPU, channels=4, stages=2, fresh_places=fresh)
    assert (cuda_on_cpu.cuda_source(built.func, GPU).count("fresh_thread") > 2) == bool(fresh)
    assert case.wrong(run_kernel(built, case, GPU)) is None


@pytest.mark.skipif(find_nvcc() is None, reason="no nvcc, which tells the registers of a kernel")
def test_a_sum_in_nearly_every_register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 sums of 80 registers, what three blocks of 256 threads leave a thread on a multiprocessor."""
    case = Case(ConvWorkload(4, 64, 56, 56, 64, 3, 3, padding=(1, 1, 1, 1)), 0.1, "channels", 3)
    tile = {"images": 4, "rows": 8, "cols": 8, "channels": 8, "rows_per_group": 64, "stages": 2, "blocks_per_sm": 3}
    func = kernel("cuda_pattern", case, GPU, **tile).func
    fresh = cuda_on_cpu.cuda_source(func, GPU)
    monkeypatch.setattr(fresh_places, "with_fresh_places", lambda source: source)
    known = cuda_on_cpu.cuda_source(func, GPU)
    assert "fresh_thread" in fresh and "fresh_thread" not in known
    assert spilled_bytes(fresh, tmp_path) < spilled_bytes(known, tmp_path)


def spilled_bytes(source: str, folder: Path) -> int:
    (folder / "kernel.cu").write_text(source)
    command = [str(find_nvcc()), "-arch=sm_90", "-cubin", "-std=c++17", "-w", "-Xptxas", "-v", "kernel.cu"]
    told = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=120)
    return sum(map(int, re.findall(r"(\d+) bytes spill stores", told.stderr + told.stdout)))
