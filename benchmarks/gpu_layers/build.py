"""Compile one variant of a case into a folder: a library, the constants, and a description that is written last."""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.gpu_layers.cases import Case
from benchmarks.gpu_layers.variants import Variant
from benchmarks.gpu_layers.weights import weight_of

ROOT = Path(__file__).resolve().parents[2]
#: What a kernel is made of; a change in any of these files makes every cached kernel stale.
SOURCES = ("schedules", "tvm_sparse/compute", "tvm_sparse/formats", "tvm_sparse/cuda", "tvm_sparse/tvm_support")
SOURCE_FILES = ("tvm_sparse/workload.py", "benchmarks/gpu_layers/weights.py", "benchmarks/gpu_layers/build.py")


@dataclass(frozen=True)
class Job:
    """A variant of a case to compile for an arch ("sm_90", or "llvm" for the CPU).

    `weights` is the folder of published filters, `digest` of the file the case takes its filter from.
    """

    case: Case
    variant: Variant
    arch: str
    seed: int
    weights: Path | None = None
    digest: str = ""

    @property
    def key(self) -> str:
        """Names the kernel: equal for jobs that give the same machine code and constants."""
        what = {
            "workload": asdict(self.case.workload()),
            "template": self.variant.template,
            "knobs": dict(sorted(self.variant.knobs.items())),
            "overlap": self.variant.overlap,
            "filter": [self.case.layer, self.case.filter_key, self.seed, self.digest],
            "arch": self.arch,
            "sources": source_digest(),
        }
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Built:
    """A kernel in a folder: `path` without suffix, the dtypes of its constants, and what it cost to compile."""

    path: Path
    constants: tuple[str, ...]
    seconds: float

    @property
    def library(self) -> Path:
        return self.path.with_suffix(".so")

    def arrays(self) -> list[Any]:
        """The constants as numpy holds them; those of a dtype numpy lacks as int16."""
        import numpy as np

        with np.load(self.path.with_suffix(".npz")) as stored:
            return [stored[name] for name in stored.files]


@cache
def source_digest() -> str:
    """A digest of the sources that kernels are made of."""
    files = [path for folder in SOURCES for path in (ROOT / folder).resolve().rglob("*.py")]
    digest = hashlib.sha256()
    for path in sorted(files) + [ROOT / name for name in SOURCE_FILES]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def built(folder: Path, key: str) -> Built | None:
    """The kernel of this key if the folder has it."""
    path = folder / key
    try:
        description = json.loads(path.with_suffix(".json").read_text())
    except (OSError, ValueError):
        return None
    return Built(path, tuple(description["constants"]), description["seconds"])


def build(job: Job, folder: Path) -> Built:
    """Compile a job into the folder, whatever stands there; every failure of a compiler is an exception."""
    import numpy as np
    import tvm

    from tvm_sparse.schedules import template
    from tvm_sparse.tvm_support import check_cuda_modules, cuda_build
    from tvm_sparse.tvm_support.dependent_launch import constant_names, dependent_launch_pipeline

    begin = time.perf_counter()
    path, workload = folder / job.key, job.case.workload()
    weight = weight_of(job.case, job.seed, job.weights).astype(_numpy_dtype(workload.dtype))
    kernel = template(job.variant.template).kernel(workload, weight, job_target(job.arch), job.variant.knobs)
    module = tvm.IRModule({"main": kernel.func.with_attr("global_symbol", "main")})
    if job.arch == "llvm":
        executable = tvm.compile(module, target=job_target(job.arch))
    else:
        with cuda_build(job.arch) as under_way:
            lowering = "default"
            if job.variant.overlap:
                weights = constant_names(kernel.func, len(kernel.constants.arrays))
                lowering = dependent_launch_pipeline([job.arch], {"main": weights})
            executable = tvm.compile(module, target=under_way.target, tir_pipeline=lowering)
        check_cuda_modules(executable, under_way)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    executable.export_library(f"{beside}.so")
    arrays = [np.ascontiguousarray(array) for array in kernel.constants.arrays]
    np.savez(f"{beside}.npz", *(array if array.dtype.kind in "fiu" else array.view(np.int16) for array in arrays))
    description = {
        "case": job.case.key,
        "workload": str(workload),
        **asdict(job.variant),
        "arch": job.arch,
        "seed": job.seed,
        "sources": source_digest(),
        "constants": [str(array.dtype) for array in arrays],
        "seconds": round(time.perf_counter() - begin, 2),
    }
    Path(f"{beside}.json").write_text(json.dumps(description, indent=1) + "\n")
    for suffix in ("so", "npz", "json"):
        os.replace(f"{beside}.{suffix}", path.with_suffix(f".{suffix}"))
    return Built(path, tuple(description["constants"]), description["seconds"])


def job_target(arch: str) -> Any:
    """The TVM target of an arch."""
    from tvm_sparse.targets import make_target

    return make_target("llvm") if arch == "llvm" else make_target("cuda", arch=arch)


def _numpy_dtype(name: str) -> Any:
    if name != "bfloat16":
        return name
    import ml_dtypes

    return ml_dtypes.bfloat16
