"""GPU architectures: their limits and which compiled code runs on which device.

Source: CUDA C++ Programming Guide, "Compute Capabilities" (shared memory) and "Binary Compatibility".
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tvm_sparse.errors import CompileError

MAX_SHARED_MEMORY_BYTES = {
    "sm_75": 65536,
    "sm_80": 166912,
    "sm_86": 101376,
    "sm_87": 166912,
    "sm_89": 101376,
    "sm_90": 232448,
    "sm_90a": 232448,
    "sm_100": 232448,
    "sm_103": 232448,
    "sm_120": 101376,
    "sm_121": 101376,
}
"""Known archs -> shared memory one block may ask for dynamically; a static array is limited to 49152 everywhere."""


def parse_archs(archs: str | Iterable[str]) -> tuple[str, ...]:
    """Check and sort architectures.

    Parameters
    ----------
    archs
        "sm_80,sm_90", or the names one by one.

    Returns
    -------
    tuple of str
        Each arch once, the lowest first.

    Raises
    ------
    CompileError
        None given, or one is unknown.
    """
    names = archs.split(",") if isinstance(archs, str) else list(archs)
    names = [name.strip() for name in names if name.strip()]
    known = ", ".join(MAX_SHARED_MEMORY_BYTES)
    if not names:
        raise CompileError(f"a CUDA target needs at least one arch: {known}")
    for name in names:
        if name not in MAX_SHARED_MEMORY_BYTES:
            raise CompileError(f"unknown CUDA arch {name!r}; known: {known}")
    return tuple(sorted(set(names), key=lambda name: (sm_number(name), name)))


def sm_number(arch: str) -> int:
    """90 for "sm_90" and for "sm_90a"."""
    match = re.fullmatch(r"sm_(\d+)a?", arch)
    if match is None:
        raise CompileError(f"{arch!r} is not a CUDA arch like sm_90")
    return int(match[1])


def runs_on(arch: str, capability: tuple[int, int]) -> bool:
    """Whether machine code for `arch` runs on a device of this compute capability (major, minor).

    It does on the same major version and a minor version at least as high; an arch ending in "a" only on exactly
    its own version.
    """
    major, minor = divmod(sm_number(arch), 10)
    if arch.endswith("a"):
        return (major, minor) == capability
    return capability[0] == major and capability[1] >= minor
