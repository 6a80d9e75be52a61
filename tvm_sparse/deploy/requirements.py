"""What a library needs of the machine that loads it."""

from __future__ import annotations

import platform
import re
from pathlib import Path

from tvm_sparse.cuda.archs import runs_on
from tvm_sparse.cuda.paths import device_capabilities
from tvm_sparse.deploy.machine import cpu_features
from tvm_sparse.deploy.metadata import Metadata
from tvm_sparse.errors import InputError, LibraryError


def place_for(device: str | None, metadata: Metadata) -> tuple[str, int]:
    """Kind and index of the device a user names, or of the first that the library is for.

    Raises
    ------
    InputError
        There is no such name, or the library is for the other kind.
    """
    kind = "cuda" if metadata.target == "cuda" else "cpu"
    match = re.fullmatch(r"(cpu|cuda)(?::(\d+))?", kind if device is None else device)
    if match is None:
        raise InputError(f"device must be cpu, cuda or cuda:N, not {device!r}")
    if match[1] != kind:
        raise InputError(f"device {device!r} does not fit: the library was compiled for {kind}")
    return kind, int(match[2] or 0) if kind == "cuda" else 0


def check_machine(path: Path, metadata: Metadata, index: int) -> None:
    """Refuse a library that this machine, with the GPU `index`, cannot run.

    Raises
    ------
    LibraryError
        The CPU lacks features, or there is no GPU of the library's archs, or no driver.
    InputError
        There is no such GPU.
    """
    _check_cpu(path, metadata)
    if metadata.target == "cuda":
        _check_gpu(path, metadata, index)


def _check_cpu(path: Path, metadata: Metadata) -> None:
    family = metadata.triple.split("-")[0]
    here = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    if family and family != here:
        raise LibraryError(f"{path}: was compiled for {family} CPUs, this one is {here}: compile it for this machine")
    features = cpu_features()
    missing = [] if features is None else [name for name in metadata.cpu_features if name not in features]
    if missing:
        made_for = metadata.mcpu or "another CPU"
        raise LibraryError(
            f"{path}: was compiled for {made_for}, this CPU lacks {', '.join(missing)}: compile it for this machine"
        )


def _check_gpu(path: Path, metadata: Metadata, index: int) -> None:
    archs = ", ".join(metadata.archs)
    capabilities = device_capabilities()
    if capabilities is None:
        raise LibraryError(f"{path}: runs on NVIDIA GPUs ({archs}) and no working driver is here: install the driver")
    if not capabilities:
        raise LibraryError(f"{path}: runs on NVIDIA GPUs ({archs}) and the driver shows none")
    if index >= len(capabilities):
        raise InputError(f"device cuda:{index} does not exist, there are {len(capabilities)} GPUs")
    capability = capabilities[index]
    if not any(runs_on(arch, capability) for arch in metadata.archs):
        wanted = "sm_{}{}".format(*capability)
        raise LibraryError(f"{path}: holds code for {archs}, GPU {index} is {wanted}: compile it with --arch {wanted}")
