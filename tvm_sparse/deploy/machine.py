"""This machine's CPU: its model, its features, how many threads are worth using. Linux; elsewhere less is known."""

from __future__ import annotations

import contextlib
import math
import os
import platform
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

# LLVM's name of what it may use -> the name in /proc/cpuinfo. Left out: what every 64-bit CPU has, what only tunes.
_CPUINFO_NAMES = {
    "sse3": "pni",
    "ssse3": "ssse3",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "popcnt": "popcnt",
    "lzcnt": "abm",
    "movbe": "movbe",
    "bmi": "bmi1",
    "bmi2": "bmi2",
    "f16c": "f16c",
    "fma": "fma",
    "avx": "avx",
    "avx2": "avx2",
    "avxvnni": "avx_vnni",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512cd": "avx512cd",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
    "avx512ifma": "avx512ifma",
    "avx512vbmi": "avx512vbmi",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512vnni": "avx512_vnni",
    "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    "gfni": "gfni",
    "amx-tile": "amx_tile",
    "amx-int8": "amx_int8",
    "amx-bf16": "amx_bf16",
    "fullfp16": "asimdhp",
    "dotprod": "asimddp",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
}


def cpuinfo_names(llvm_features: Iterable[str]) -> tuple[str, ...]:
    """The features of an LLVM target that its code really needs, as /proc/cpuinfo names them, sorted."""
    return tuple(sorted(_CPUINFO_NAMES[name] for name in llvm_features if name in _CPUINFO_NAMES))


@lru_cache(maxsize=1)
def cpu_features() -> frozenset[str] | None:
    """The features of this machine's first CPU; None where /proc/cpuinfo does not tell."""
    for key, value in _cpuinfo():
        if key in ("flags", "Features"):
            return frozenset(value.split())
    return None


def cpu_model() -> str:
    """Like "AMD EPYC 9554"; the plain architecture where nothing better is known."""
    return next((value for key, value in _cpuinfo() if key == "model name"), platform.machine())


def usable_cpus() -> list[int]:
    """Logical CPUs this process may run on; those of all its threads, for TVM may have pinned the calling one."""
    try:
        tasks = [int(task) for task in os.listdir("/proc/self/task")]
    except OSError:
        return list(range(os.cpu_count() or 1))
    cpus: set[int] = set()
    for task in tasks:
        with contextlib.suppress(OSError):  # it has ended meanwhile
            cpus |= os.sched_getaffinity(task)
    return sorted(cpus)


def default_threads() -> int:
    """TVM_NUM_THREADS or OMP_NUM_THREADS if set, else the usable cores (no hyper-threads) within a cgroup's limit."""
    cpus = usable_cpus()
    for variable in ("TVM_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(variable, "")
        if text.isdigit() and int(text) > 0:
            return min(int(text), len(cpus))
    return max(1, math.ceil(min(_physical_cores(cpus), _cpu_quota())))


def _physical_cores(cpus: Iterable[int]) -> int:
    cores = set()
    for cpu in cpus:
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(topology.read_text().strip())
        except OSError:
            cores.add(str(cpu))
    return len(cores)


def _cpu_quota() -> float:
    """CPUs' worth of time a container may use; infinite where no limit is set."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):
        return math.inf


def _cpuinfo() -> list[tuple[str, str]]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    pairs = (line.partition(":") for line in lines)
    return [(key.strip(), value.strip()) for key, _, value in pairs]
