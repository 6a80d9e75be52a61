"""Where CUDA's parts lie on this machine: the toolkit, the `nvidia-*` wheels, the driver."""

from __future__ import annotations

import ctypes
import glob
import importlib.util
import os
import shutil
from pathlib import Path

CUDART_SONAME = "libcudart.so.13"
"""The CUDA runtime apache-tvm 0.27 is linked with."""

DRIVER_SONAME = "libcuda.so.1"


def cuda_roots() -> list[Path]:
    """Folders that hold (parts of) a CUDA toolkit, the most explicit first.

    CUDA_PATH, CUDA_HOME, the toolkit of the nvcc on PATH, the `nvidia-*` wheels of this Python, /usr/local/cuda*.
    """
    named = [os.environ.get("CUDA_PATH"), os.environ.get("CUDA_HOME")]
    candidates = [Path(name) for name in named if name]
    on_path = shutil.which("nvcc")
    if on_path:
        candidates.append(Path(on_path).resolve().parent.parent)
    candidates += _wheel_roots()
    candidates += [Path(name) for name in ["/usr/local/cuda", *sorted(glob.glob("/usr/local/cuda-*"), reverse=True)]]
    return list(dict.fromkeys(path for path in candidates if path.is_dir()))


def _wheel_roots() -> list[Path]:
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec is not None else None
    return [Path(folder) / "cu13" for folder in folders or ()]


def find_nvcc() -> Path | None:
    """The nvcc of CUDA_PATH or CUDA_HOME, else the one on PATH, else any toolkit's."""
    for variable in ("CUDA_PATH", "CUDA_HOME"):
        nvcc = Path(os.environ.get(variable) or os.devnull) / "bin" / "nvcc"
        if os.access(nvcc, os.X_OK):
            return nvcc
    on_path = shutil.which("nvcc")
    if on_path:
        return Path(on_path)
    return next((root / "bin" / "nvcc" for root in cuda_roots() if os.access(root / "bin" / "nvcc", os.X_OK)), None)


def find_library(soname: str) -> Path | None:
    """A shared library of the toolkit or the wheels, by its file name."""
    for root in cuda_roots():
        for folder in ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"):
            if (root / folder / soname).is_file():
                return root / folder / soname
    return None


def load_cudart() -> str | None:
    """Load the CUDA runtime; its path or name, or None where there is none.

    A library linked against that name which is loaded later gets this one, wherever it lies.
    """
    found = find_library(CUDART_SONAME)
    for name in (CUDART_SONAME, str(found) if found else None):
        if name and can_load(name):
            return name
    return None


def can_load(name: str | Path) -> bool:
    """Load a shared library, for good; False where that fails."""
    try:
        ctypes.CDLL(str(name))
    except OSError:
        return False
    return True


def device_capabilities() -> list[tuple[int, int]] | None:
    """Compute capability (major, minor) of each GPU the driver shows; None where no working driver is."""
    try:
        driver = ctypes.CDLL(DRIVER_SONAME)
        # A stub of the driver, as the compiler loads where there is none, lacks these names.
        init, get_count, get_device = driver.cuInit, driver.cuDeviceGetCount, driver.cuDeviceGet
        get_attribute = driver.cuDeviceGetAttribute
    except (OSError, AttributeError):
        return None
    count = ctypes.c_int()
    if init(0) != 0 or get_count(ctypes.byref(count)) != 0:
        return None
    capabilities = []
    for ordinal in range(count.value):
        device = ctypes.c_int()
        get_device(ctypes.byref(device), ordinal)
        values = []
        for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
            value = ctypes.c_int()
            get_attribute(ctypes.byref(value), attribute, device)
            values.append(value.value)
        capabilities.append((values[0], values[1]))
    return capabilities
