"""Compile the networks of some cases into a folder, each in a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from benchmarks.gpu_layers.build import ROOT, Built
from benchmarks.gpu_layers.pool import BuildError, CompilerPool
from benchmarks.gpu_networks.cases import Case

#: What a library is made of; a change in any of these files makes every one in the folder stale.
SOURCES = ("schedules", "tvm_sparse", "examples/networks")
#: Rooms that only use libraries.
NO_SOURCES = ("peers", "cli")
NO_LOG, SHIPPED_LOG = "none", "shipped"


@dataclass(frozen=True)
class Job:
    """A case to compile for an arch ("sm_90", or "llvm" for the CPU).

    `log` is "shipped", "none" or a path to tuning records, `weights` the folder of published filters.
    """

    case: Case
    arch: str
    seed: int
    log: str = SHIPPED_LOG
    weights: Path | None = None

    @property
    def key(self) -> str:
        """Names the library: equal for jobs that give the same one."""
        published = self.weights if self.case.weights == "published" else None
        what = {
            **asdict(self.case),
            "arch": self.arch,
            "seed": self.seed,
            "log": self.log_digest,
            "published": _digest(sorted(published.glob("*.npz"))) if published else "",
            "sources": source_digest(),
        }
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:20]

    @property
    def log_digest(self) -> str:
        """Of the tuning records that are used, or "none"."""
        if self.log == NO_LOG:
            return NO_LOG
        from tvm_sparse.tuning.log_files import shipped_logs

        path = Path(shipped_logs() if self.log == SHIPPED_LOG else self.log)
        return _digest(sorted(path.rglob("*.jsonl")) if path.is_dir() else [path])


@cache
def source_digest() -> str:
    """A digest of the sources that libraries are made of."""
    files = (path for folder in SOURCES for path in (ROOT / folder).resolve().rglob("*.py"))
    return _digest(sorted(path for path in files if path.parent.name not in NO_SOURCES))


def compile_network(job: Job, folder: Path) -> Built:
    """Compile a job into the folder, whatever stands there; every failure of a compiler is an exception."""
    import tvm_sparse

    begin = time.perf_counter()
    path = folder / job.key
    log = {NO_LOG: None, SHIPPED_LOG: SHIPPED_LOG}.get(job.log, job.log)
    model = job.case.model(job.seed, job.weights)
    options = {"target": "llvm"} if job.arch == "llvm" else {"target": "cuda", "arch": job.arch}
    if job.case.precision != "float32":
        options["precision"] = job.case.precision
    compiled = tvm_sparse.compile(model, log=log, verify=False, **options)
    compiled.export(path.with_suffix(".so"))
    seconds = round(time.perf_counter() - begin, 2)
    description = {"case": job.case.key, "arch": job.arch, "constants": [], "seconds": seconds}
    beside = path.with_name(f"{path.name}.{os.getpid()}.json")
    beside.write_text(json.dumps(description, indent=1) + "\n")
    os.replace(beside, path.with_suffix(".json"))
    return Built(path, (), seconds)


def prepare(jobs: Iterable[Job], pool: CompilerPool, tell: Callable[[str], None]) -> Mapping[Job, Built | BuildError]:
    """Compile all jobs; what became of each."""
    futures = {pool.submit(job): job for job in jobs}
    found: dict[Job, Built | BuildError] = {}
    for done, future in enumerate(as_completed(futures), start=1):
        job = futures[future]
        label = f"[{done}/{len(futures)}] {job.case.key}"
        try:
            found[job] = future.result()
            tell(f"{label}: compiled, {future.result().seconds:.0f} s")
        except BuildError as error:
            found[job] = error
            tell(f"{label}: NOT COMPILED: {error}")
    return {job: found[job] for job in jobs}


def _digest(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
