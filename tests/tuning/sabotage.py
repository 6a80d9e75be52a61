"""Stand-ins for what workers do, that fail for some candidates in every way one can fail."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tvm_sparse.tuning import candidates, measuring

#: What happens to a candidate, by its number.
WAYS = ("fine", "crash", "hang", "raise", "wrong", "build raises", "build crashes", "fine")


def way_of(files: str) -> str:
    return WAYS[int(Path(files).name) % len(WAYS)]


def make(files: str, folder: str, workload: Any, target: Any, archs: Sequence[str], *point: Any) -> tuple[str, str]:
    match way_of(files):
        case "build raises":
            raise RuntimeError("nvcc: error:\n  out of registers")
        case "build crashes":
            os.abort()
    return candidates.make(files, folder, workload, target, archs, *point)


def measure(files: str, folder: str, *arguments: Any) -> Any:
    match way_of(files):
        case "crash":
            signal.raise_signal(signal.SIGSEGV)
        case "hang":
            time.sleep(1000)
        case "raise":
            raise RuntimeError("an illegal memory access was encountered")
        case "wrong":
            with np.load(f"{files}.npz") as packed:
                arrays: dict[str, Any] = dict(packed)
            arrays["00"] = arrays["00"] * 1.001
            np.savez(f"{files}.npz", **arrays)
    return measuring.measure(files, folder, *arguments)


def mistake(files: str, folder: str, *arguments: Any) -> measuring.Timing:
    """As if others had used the CPU whenever the default ran, which is the first."""
    timing = measuring.measure(files, folder, *arguments)
    factor = 1000.0 if Path(files).name == "0" else 1.0
    return measuring.Timing(tuple(factor * us for us in timing.times_us), timing.error, timing.timer)


def pretend(files: str, folder: str, *arguments: Any) -> measuring.Timing:
    """As if a GPU had run what was built, which must be there whole, with machine code inside."""
    library = Path(f"{files}.so").read_bytes()
    with np.load(f"{files}.npz") as packed:
        stored = sum(array.size for array in packed.values())
    assert b"\x50\xed\x55\xba" in library, "no fat binary"  # its magic number
    assert (Path(folder) / "expected.npy").exists()
    return measuring.Timing((float(stored + 1),) * 3, 1e-7, "graph")


def fill_disk(*arguments: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
