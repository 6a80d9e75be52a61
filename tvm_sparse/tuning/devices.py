"""What a log calls the device that is tuned for: a folder's name, an arch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tvm_sparse.cuda.archs import parse_archs
from tvm_sparse.errors import InputError
from tvm_sparse.targets import make_target
from tvm_sparse.tuning.fleet import remote_device
from tvm_sparse.tuning.measuring import Place, ready_to_run
from tvm_sparse.tuning.records import Site
from tvm_sparse.tuning.tuner import Setting
from tvm_sparse.tuning.workers import WorkerCrash, WorkerError, WorkerPool

QUERY_TIMEOUT_S = 60.0
MOST_GPUS = 16
#: Vector extensions of CPUs, the widest first: LLVM's name and ours.
EXTENSIONS = (("avx512f", "avx512"), ("avx2", "avx2"), ("avx", "avx"), ("sve", "sve"), ("neon", "neon"))


def cpu_site(target: Any) -> Site:
    """The site of an "llvm" target: its folder is named by its vector extension."""
    from tvm.target import codegen

    features = {str(feature) for feature in codegen.llvm_get_cpu_features(target)}
    extension = next((ours for name, ours in EXTENSIONS if name in features), "generic")
    return Site(f"llvm-{extension}", str(target.attrs["mcpu"]), int(target.attrs["num-cores"]))


def gpu_site(name: str, compute_capability: str) -> Site:
    """The site of a GPU, from what its driver calls it: "NVIDIA H200" and "9.0" are nvidia-h200, sm_90."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    slug = slug if slug.startswith("nvidia") else f"nvidia-{slug}"
    return Site(slug, f"sm_{compute_capability.replace('.', '')}")


def local_gpus() -> list[Site]:
    """The GPUs of this machine, found out in a process of its own so that none is opened in this one.

    Raises
    ------
    InputError
        There is none, or its driver does not work.
    """
    pool = WorkerPool([(ready_to_run, (Place("cuda"),))])
    try:
        found = pool.submit(list_gpus, timeout_s=QUERY_TIMEOUT_S).result()
    except (WorkerCrash, WorkerError, TimeoutError) as error:
        raise InputError(f"the GPUs of this machine cannot be listed: {error}") from error
    finally:
        pool.close()
    if not found:
        raise InputError("no CUDA GPU here to tune on: run this where one is, or use a fleet: --rpc-tracker HOST:PORT")
    return [gpu_site(*gpu) for gpu in found]


def list_gpus() -> list[tuple[str, str]]:
    """Name and compute capability of every GPU this process sees."""
    import tvm

    gpus = [tvm.cuda(index) for index in range(MOST_GPUS)]
    return [(str(gpu.device_name), str(gpu.compute_version)) for gpu in gpus if gpu.exist]


def fleet_gpu(tracker: tuple[str, int, str]) -> Site:
    """The site of a fleet's GPUs, by the first server that answers."""
    return gpu_site(*remote_device(tracker, "cuda"))


def setting_for(
    kind: str,
    *,
    arch: str | Sequence[str] | None = None,
    mcpu: str | None = None,
    threads: int | None = None,
    tracker: tuple[str, int, str] | None = None,
) -> Setting:
    """What to tune for and with, on the devices of this machine or those of a fleet.

    Raises
    ------
    InputError
        The device is not here, options do not go together, or the fleet does not answer.
    CompileError
        LLVM does not know `mcpu`, or an arch is unknown.
    """
    if kind != "cuda":
        target = make_target(kind, arch=arch, mcpu=mcpu, threads=threads)
        site = cpu_site(target)
        if mcpu is not None and tracker is None and cpu_site(make_target(kind)).arch != site.arch:
            raise InputError(f"--mcpu {mcpu}: this machine is another one, and only it can measure: use --rpc-tracker")
        return Setting(site, target, places=(Place("cpu", threads=site.threads),), tracker=tracker)
    gpus = local_gpus() if tracker is None else [fleet_gpu(tracker)]
    site = gpus[0]
    if arch is not None and parse_archs(arch) != (site.arch,):
        raise InputError(f"--arch {arch}: the GPU that measures is {site.device}, {site.arch}")
    target = make_target(kind, arch=site.arch, mcpu=mcpu, threads=threads)
    places = tuple(Place("cuda", index) for index, gpu in enumerate(gpus) if gpu == site)
    return Setting(site, target, archs=(site.arch,), places=places, tracker=tracker)
