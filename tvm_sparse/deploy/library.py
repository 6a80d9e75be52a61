"""Write a library: link what TVM compiled into one shared object and add the metadata to it."""

from __future__ import annotations

import datetime
import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm_sparse.cuda.archs import sm_number
from tvm_sparse.cuda.fatbin import find_fatbins
from tvm_sparse.deploy.elf import add_fatbin_sections
from tvm_sparse.deploy.machine import cpuinfo_names
from tvm_sparse.deploy.metadata import BatchSizes, Metadata, TensorSpec
from tvm_sparse.deploy.trailer import append_trailer
from tvm_sparse.errors import CompileError, OutputError
from tvm_sparse.files import replacing

_PACKAGES = ("tvm-sparse", "apache-tvm", "apache-tvm-ffi")


@dataclass(frozen=True)
class ExportReport:
    """What was written: the file, its size, and that of the convolution filters dense and as packed."""

    path: Path
    library_bytes: int
    dense_bytes: int
    sparse_bytes: int


def export_library(executable: Any, metadata: Metadata, path: str | Path) -> ExportReport:
    """Write a Relax executable as one library file; on any failure the old file at `path` stays as it was.

    Parameters
    ----------
    executable
        What `tvm.compile` made of a Relax module whose "main" takes and returns what `metadata` says, and whose other
        functions are those of `metadata.batch`.
    metadata
        See `make_metadata`.
    path
        Where to; any name will do.

    Raises
    ------
    CompileError
        There is no C++ compiler, it fails, or a CUDA library lacks machine code for one of `metadata.archs`.
    OutputError
        `path` cannot be written.
    """
    path = Path(path)
    with replacing(path) as beside:
        _link(executable, beside)
        if metadata.target == "cuda":
            fatbins = find_fatbins(beside.read_bytes())
            for arch in metadata.archs:
                if not fatbins or any(sm_number(arch) not in fatbin.sm_numbers for fatbin in fatbins):
                    raise CompileError(
                        f"{path}: the compiled code holds no machine code for {arch}: build with cuda_build"
                    )
            add_fatbin_sections(beside, fatbins)
        size_bytes = append_trailer(beside, metadata)
    return ExportReport(path, size_bytes, metadata.dense_bytes, metadata.sparse_bytes)


def make_metadata(
    *,
    model: str,
    inputs: Iterable[Any],
    outputs: Iterable[Any],
    target: Any,
    archs: Sequence[str] | None = None,
    cuda_graph: bool = False,
    precision: str = "float32",
    batch: BatchSizes | None = None,
    layers: Sequence[Mapping[str, Any]] = (),
    dense_bytes: int = 0,
    sparse_bytes: int = 0,
) -> Metadata:
    """Metadata of what was compiled for a `tvm.target.Target`.

    Parameters
    ----------
    inputs, outputs
        Anything with `name`, `shape` and `dtype`.
    target
        Kind llvm, or cuda with an llvm host. Of its CPU code the needed features are asked from LLVM.
    archs
        CUDA: those compiled for; by default the target's own.
    cuda_graph
        CUDA: whether the code was generated for one.
    precision
        What activations are stored in.
    batch
        The batch sizes served, where `inputs` and `outputs` are only the largest.
    """
    from tvm.target import codegen

    kind = str(target.kind.name)
    host = target.host if kind == "cuda" else target
    if kind == "cuda" and archs is None:
        archs = (str(target.attrs["arch"]),)
    return Metadata(
        model=model,
        inputs=_specs(inputs),
        outputs=_specs(outputs),
        target=kind,
        triple=str(host.attrs.get("mtriple") or codegen.llvm_get_system_triple()),
        mcpu=str(host.attrs.get("mcpu") or ""),
        cpu_features=cpuinfo_names(str(feature) for feature in codegen.llvm_get_cpu_features(host)),
        archs=tuple(archs or ()),
        cuda_graph=cuda_graph,
        precision=precision,
        versions=_versions(),
        batch=batch,
        layers=tuple(map(dict, layers)),
        dense_bytes=dense_bytes,
        sparse_bytes=sparse_bytes,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def _specs(specs: Iterable[Any]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(spec.name, tuple(int(size) for size in spec.shape), str(spec.dtype)) for spec in specs)


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # a source checkout that was not installed
            versions[package] = "unknown"
    return versions


def _link(executable: Any, path: Path) -> None:
    from tvm.support import cc

    compiler = cc.get_cc()
    if compiler is None:
        raise CompileError("writing a library needs a C++ compiler: install g++ or set CXX")
    try:
        executable.export_library(str(path), fcompile=cc.create_shared)
    except OSError as error:
        if error.filename is None or str(error.filename).split()[0] != compiler.split()[0]:
            raise
        raise CompileError(f"the C++ compiler {compiler!r} does not run: {error.strerror}") from error
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = next((line for line in lines if "error" in line.lower() and line != "Compilation error:"), lines[-1])
        if "No space left on device" in str(error):
            raise OutputError(f"{path.parent.parent}: no space left on the device: make room") from error
        raise CompileError(f"the C++ compiler {compiler!r} cannot link the library: {said}") from error
