"""The TVM target a user means by "llvm" or "cuda"."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from tvm_sparse.errors import CompileError, InputError
from tvm_sparse.tvm_support import cuda_target, import_tvm

KINDS = ("llvm", "cuda")


def make_target(
    kind: str, *, arch: str | Sequence[str] | None = None, mcpu: str | None = None, threads: int | None = None
) -> Any:
    """The `tvm.target.Target` for "llvm" (this machine's CPU unless `mcpu` names another) or "cuda" (needs `arch`).

    `threads` is the number of CPU threads that work is cut for; by default those this process may use.

    Raises
    ------
    InputError
        Unknown kind, or an option of the other kind.
    CompileError
        LLVM does not know `mcpu`, or an arch is unknown or missing.
    """
    if kind not in KINDS:
        raise InputError(f"unknown target {kind!r}: choose one of {', '.join(KINDS)}")
    if kind == "cuda":
        if mcpu is not None:
            raise InputError(f"--mcpu {mcpu} belongs to --target llvm: name the GPU with --arch")
        if threads is not None:
            raise InputError(f"--threads {threads} belongs to --target llvm: a GPU needs no such number")
        if not arch:
            raise CompileError("target cuda needs the GPU's architecture: --arch sm_90, or several: --arch sm_80,sm_90")
        return cuda_target(arch)
    if arch:
        raise InputError(f"--arch {arch} belongs to --target cuda: name the CPU with --mcpu")
    if threads is not None and threads < 1:
        raise InputError(f"{threads} threads: take 1 or more")
    tvm = import_tvm()
    codegen = tvm.target.codegen
    name = mcpu or str(codegen.llvm_get_system_cpu())
    generic = tvm.target.Target({"kind": "llvm"})
    known = {str(cpu) for cpu in codegen.llvm_get_cpu_archlist(generic)}
    if name not in known:
        raise CompileError(f"LLVM does not know the CPU {name!r}: choose --mcpu from {', '.join(sorted(known))}")
    return tvm.target.Target({"kind": "llvm", "mcpu": name, "num-cores": threads or len(os.sched_getaffinity(0))})
