"""Compile a large CUDA source in parts, on all processors at once: TVM puts all kernels of a network into one.

nvcc's threads share out architectures, not kernels. The parts are compiled to be linked, which leaves a kernel as it is
but for the address of its shared memory. Needless once TVM hands over kernels one by one.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tvm_sparse.cuda.fatbin import pack_fatbin

#: Below this size one compiler is as fast.
LEAST_BYTES = 1 << 20
#: About what one compiler takes in a few seconds.
PART_BYTES = 1 << 18
_KERNEL = re.compile(r'^extern "C" __global__ [^\n;]*\{$', re.MULTILINE)
_TOP_LEVEL = re.compile(r"^[^\s}#/]", re.MULTILINE)
_FUNCTION = re.compile(r"^__forceinline__ __device__ [^\n]*?(\w+)\([^\n]*\) \{\n.*?^\}\n", re.MULTILINE | re.DOTALL)
_CALL = re.compile(r"(\w+)\(")
_ASSEMBLY = re.compile(r'R"\(.*?\)"', re.DOTALL)


@dataclass(frozen=True)
class _Head:
    """What stands in front of all kernels, and of it the functions, which only some of them call."""

    text: str
    functions: dict[str, str]

    @classmethod
    def of(cls, text: str) -> _Head:
        return cls(text, {match[1]: match[0] for match in _FUNCTION.finditer(text)})

    def called(self, code: str) -> frozenset[str]:
        """The functions that some code calls, itself or through others."""
        found: set[str] = set()
        unread = [code]
        while unread:
            calls = set(_CALL.findall(_ASSEMBLY.sub("", unread.pop()))) & self.functions.keys() - found
            found |= calls
            unread += [self.functions[name] for name in calls]
        return frozenset(found)

    def kept(self, names: frozenset[str]) -> str:
        """All of it but for the functions that have none of these names."""
        return _FUNCTION.sub(lambda match: match[0] if match[1] in names else "", self.text)


def split_kernels(source: str, most: int) -> list[str]:
    """At most so many sources of about the same size with a kernel or more each, or only the source itself.

    Parameters
    ----------
    source
        As TVM generates it: what all kernels need and the functions they call, then one kernel after the other.
    """
    starts = [match.start() for match in _KERNEL.finditer(source)]
    kernels = [source[start:end] for start, end in zip(starts, [*starts[1:], len(source)], strict=True)]
    most = min(most, len(kernels), -(-len(source) // PART_BYTES))
    if most < 2 or any(len(_TOP_LEVEL.findall(kernel)) > 1 for kernel in kernels):
        return [source]
    head = _Head.of(source[: starts[0]])
    everywhere = head.called(head.kept(frozenset()))
    called = [head.called(kernel) for kernel in kernels]
    sizes = [
        len(kernel) + sum(len(head.functions[name]) for name in names)
        for kernel, names in zip(kernels, called, strict=True)
    ]
    parts: list[list[int]] = [[] for _ in range(most)]
    for index in sorted(range(len(kernels)), key=sizes.__getitem__, reverse=True):
        min(parts, key=lambda part: sum(sizes[own] for own in part)).append(index)
    return [
        head.kept(everywhere.union(*(called[index] for index in part))) + "".join(kernels[index] for index in part)
        for part in parts
    ]


def compile_in_parts(
    nvcc: str, source: str, archs: Sequence[str], flags: Sequence[str], timeout_s: float
) -> bytes | None:
    """A fat binary with machine code for each arch; None where one compiler has to do it, or can say what is wrong.

    Parameters
    ----------
    nvcc
        The program; nvlink lies beside it.
    flags
        For every part; what is compiled for and to is added.
    """
    linker = Path(nvcc).with_name("nvlink")
    parts = split_kernels(source, _processors()) if len(source) >= LEAST_BYTES else []
    if len(parts) < 2 or not os.access(linker, os.X_OK):
        return None
    with tempfile.TemporaryDirectory(prefix="tvm-sparse-") as name:
        folder = Path(name)

        def run(*command: str) -> None:
            subprocess.run(command, cwd=folder, capture_output=True, check=True, timeout=timeout_s)

        def compile_part(job: tuple[int, str]) -> str:
            index, arch = job
            cubin = f"{index}-{arch}.cubin"
            run(nvcc, *flags, f"-arch={arch}", "-rdc=true", "-cubin", "-o", cubin, f"{index}.cu")
            return cubin

        for index, part in enumerate(parts):
            (folder / f"{index}.cu").write_text(part)
        linked = {}
        try:
            with ThreadPoolExecutor(_processors()) as pool:
                jobs = [(index, arch) for arch in archs for index in range(len(parts))]
                cubins = list(pool.map(compile_part, jobs))
            for arch in archs:
                own = [cubin for cubin, job in zip(cubins, jobs, strict=True) if job[1] == arch]
                run(str(linker), f"-arch={arch}", *own, "-o", f"{arch}.cubin")
                linked[arch] = (folder / f"{arch}.cubin").read_bytes()
        except (OSError, subprocess.SubprocessError):
            return None
        return pack_fatbin(linked)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
