"""Load TVM's runtime libraries without TVM's Python package, and the compiled library on top of them.

Needed are the `tvm_ffi` package (apache-tvm-ffi) and libtvm_runtime.so; libtvm_runtime_cuda.so for CUDA. The compiler,
libtvm_compiler.so, is not loaded.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
from pathlib import Path
from typing import Any

from tvm_sparse.cuda.paths import CUDART_SONAME, load_cudart
from tvm_sparse.deploy.tensors import DEVICE_TYPES
from tvm_sparse.errors import LibraryError

RUNTIME_DIR_VARIABLE = "TVM_SPARSE_RUNTIME_DIR"
_RUNTIME = "libtvm_runtime.so"
_POOLED_ALLOCATOR = 2
_versions_seen: dict[str, list[tuple[int, int]]] = {}  # device and inode of each file that stood at a path


def load_runtime(library: Path, *, cuda: bool) -> Any:
    """Make this process able to run libraries; at once if it already is, by us or by an imported TVM.

    Parameters
    ----------
    library
        Its folder is where the runtime is looked for last.
    cuda
        Whether it is for a GPU.

    Returns
    -------
    module
        `tvm_ffi`.

    Raises
    ------
    LibraryError
        Something is not installed; the message says what.
    """
    try:
        tvm_ffi = importlib.import_module("tvm_ffi")
    except ImportError as error:
        raise LibraryError(
            f'{library}: needs apache-tvm-ffi ({error}): pip install "apache-tvm-ffi==0.1.14.post1"'
        ) from error
    if not _is_registered(tvm_ffi, "ffi.Module.load_from_bytes.relax.VMExecutable"):
        _load(_find_runtime(library), library, ctypes.RTLD_GLOBAL)
    folder = _mapped(_RUNTIME) or _find_runtime(library)
    extra = folder.with_name("libtvm_runtime_extra.so")  # sorting and the like; not every network needs it
    if extra.exists():
        _load(extra, library)
    if cuda and not _is_registered(tvm_ffi, "device_api.cuda"):
        if load_cudart() is None:
            raise LibraryError(f"{library}: needs {CUDART_SONAME}: pip install nvidia-cuda-runtime, or set CUDA_PATH")
        _load(folder.with_name("libtvm_runtime_cuda.so"), library)
    return tvm_ffi


def load_module(tvm_ffi: Any, library: Path) -> Any:
    """The TVM module in a library file, its code as it stands there now. It stays loaded.

    The dynamic linker takes a path it has seen before for the file it saw then, so the same place is spelled in
    another way (/folder/./net.so) once its file was replaced.
    """
    status = library.stat()
    versions = _versions_seen.setdefault(str(library), [])
    if (version := (status.st_dev, status.st_ino)) not in versions:
        versions.append(version)
    spelled = f"{library.parent}/{'./' * versions.index(version)}{library.name}"
    try:
        # The call behind tvm_ffi.load_module, which wants file names that end in .so.
        module = tvm_ffi.get_global_func("ffi.Module.load_from_file.so")(spelled, "so")
        tvm_ffi.get_global_func("ffi.ModuleGlobalsAdd")(module)
    except Exception as error:  # tvm_ffi raises its own kinds; whatever it is, the file cannot be used
        raise LibraryError(f"{library}: cannot be loaded: {' '.join(str(error).split())}") from error
    return module


def start_machine(tvm_ffi: Any, library: Path, kind: str, index: int) -> Any:
    """A virtual machine of a library's own on a device ("cpu" or "cuda", its index), with its constants there."""
    machine = load_module(tvm_ffi, library)["vm_load_executable"]()
    where = [DEVICE_TYPES[kind], index, _POOLED_ALLOCATOR]
    machine["vm_initialization"](*where, *([DEVICE_TYPES["cpu"], 0, _POOLED_ALLOCATOR] if kind == "cuda" else []))
    return machine


def _is_registered(tvm_ffi: Any, name: str) -> bool:
    return tvm_ffi.get_global_func(name, allow_missing=True) is not None


def _find_runtime(library: Path) -> Path:
    folders = []
    if os.environ.get(RUNTIME_DIR_VARIABLE):
        folders.append(Path(os.environ[RUNTIME_DIR_VARIABLE]))
    spec = importlib.util.find_spec("tvm")  # does not import it
    folders += [Path(folder) / "lib" for folder in (spec and spec.submodule_search_locations) or ()]
    folders.append(library.parent)
    for folder in folders:
        if (folder / _RUNTIME).is_file():
            return (folder / _RUNTIME).resolve()
    searched = ", ".join(map(str, folders))
    raise LibraryError(
        f"{library}: needs TVM's {_RUNTIME}, not found in {searched}: install apache-tvm or set {RUNTIME_DIR_VARIABLE}"
    )


def _mapped(name: str) -> Path | None:
    """Path of a shared library that this process has already loaded."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    paths = (Path(line.split(maxsplit=5)[5]) for line in lines if line.endswith(f"/{name}"))
    return next(paths, None)


def _load(path: Path, library: Path, mode: int = ctypes.DEFAULT_MODE) -> None:
    try:
        ctypes.CDLL(str(path), mode)
    except OSError as error:
        raise LibraryError(f"{library}: TVM's runtime cannot be loaded: {error}") from error
