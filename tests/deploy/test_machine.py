"""The CPU: LLVM's names of features, and how many threads to use by default."""

from __future__ import annotations

import math
import os

import pytest

from tvm_sparse.deploy import machine


def test_only_what_code_needs_is_named():
    llvm = ["64bit", "avx2", "fast-gather", "fma", "avx512vnni", "bmi", "clzero", "sse2"]
    assert machine.cpuinfo_names(llvm) == ("avx2", "avx512_vnni", "bmi1", "fma")


@pytest.mark.parametrize(
    ("mcpu", "needed", "not_needed"),
    [
        ("x86-64", set(), {"avx", "fma", "sse4_1"}),
        ("x86-64-v3", {"avx2", "fma", "f16c", "bmi2"}, {"avx512f"}),
        ("skylake-avx512", {"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"}, {"avx512_vnni"}),
        ("znver4", {"avx512f", "avx512_vnni", "avx512_bf16"}, {"avx512_fp16", "amx_tile"}),
        ("sapphirerapids", {"avx512_fp16", "amx_tile"}, set()),
    ],
)
def test_features_of_known_cpus(mcpu, needed, not_needed):
    import tvm

    target = tvm.target.Target({"kind": "llvm", "mcpu": mcpu, "mtriple": "x86_64-linux-gnu"})
    names = set(machine.cpuinfo_names(map(str, tvm.target.codegen.llvm_get_cpu_features(target))))
    assert needed <= names and not names & not_needed


@pytest.mark.skipif(machine.cpu_features() is None, reason="no /proc/cpuinfo here")
def test_this_cpu_has_what_llvm_says_it_has():
    import tvm

    target = tvm.target.Target({"kind": "llvm", "mcpu": str(tvm.target.codegen.llvm_get_system_cpu())})
    names = set(machine.cpuinfo_names(map(str, tvm.target.codegen.llvm_get_cpu_features(target))))
    assert names <= machine.cpu_features()


@pytest.mark.parametrize(
    ("variables", "quota", "expected"),
    [
        ({}, math.inf, 4),
        ({}, 1.5, 2),
        ({}, 0.1, 1),
        ({"TVM_NUM_THREADS": "3"}, math.inf, 3),
        ({"OMP_NUM_THREADS": "2"}, math.inf, 2),
        ({"TVM_NUM_THREADS": "99"}, math.inf, 8),
        ({"TVM_NUM_THREADS": "many"}, math.inf, 4),
    ],
)
def test_default_threads(monkeypatch, variables, quota, expected):
    for name in ("TVM_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(machine, "usable_cpus", lambda: list(range(8)))
    monkeypatch.setattr(machine, "_physical_cores", lambda cpus: 4)
    monkeypatch.setattr(machine, "_cpu_quota", lambda: quota)
    assert machine.default_threads() == expected


def test_usable_cpus_are_those_of_this_process():
    assert set(machine.usable_cpus()) == os.sched_getaffinity(0)
    assert 1 <= machine.default_threads() <= len(machine.usable_cpus())
