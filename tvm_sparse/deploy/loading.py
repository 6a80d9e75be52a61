"""Load a library, with TVM's runtime only: neither the compiler nor TVM's Python package is imported."""

from __future__ import annotations

import contextlib
from pathlib import Path

from tvm_sparse.deploy.cuda_calls import CudaCalls
from tvm_sparse.deploy.native import load_runtime, start_machine
from tvm_sparse.deploy.plain_launches import PlainLaunches
from tvm_sparse.deploy.requirements import check_machine, place_for
from tvm_sparse.deploy.runtime import Network
from tvm_sparse.deploy.threads import ThreadPool
from tvm_sparse.deploy.trailer import read_metadata


def load(path: str | Path, *, device: str | None = None, threads: int | None = None) -> Network:
    """Load a library; loading runs its code, so load only what you trust.

    Parameters
    ----------
    path
        A file that `export` wrote.
    device
        "cpu", "cuda" or "cuda:1"; by default the first device of the kind the library is for.
    threads
        CPU threads to use; by default the usable cores, or TVM_NUM_THREADS.

    Raises
    ------
    LibraryError
        The file is missing or damaged, or this machine lacks what it needs: CPU features, a GPU of its arch, a driver.
    InputError
        `device` or `threads` is not possible.
    """
    path = Path(path).absolute()
    metadata = read_metadata(path)
    kind, index = place_for(device, metadata)
    check_machine(path, metadata, index)
    tvm_ffi = load_runtime(path, cuda=kind == "cuda")
    pool = ThreadPool(tvm_ffi, threads) if kind == "cpu" else None
    plain = PlainLaunches(tvm_ffi) if kind == "cuda" and metadata.cuda_graph else None
    with plain.installed() if plain else contextlib.nullcontext():
        machine = start_machine(tvm_ffi, path, kind, index)
    gpu = CudaCalls(tvm_ffi, index, plain) if kind == "cuda" else None
    network = Network(path, metadata, tvm_ffi, machine, (kind, index), pool, gpu)
    network.prepare()
    return network
