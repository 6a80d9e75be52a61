"""Time convolution layers on an NVIDIA GPU: ours, cuDNN, cuSPARSE and cuBLAS, in one process.

    python -m benchmarks.gpu_layers layers                            # what there is; needs nothing
    python -m benchmarks.gpu_layers prepare --preset quick            # compiles; needs no GPU
    python -m benchmarks.gpu_layers run --preset quick                # measures, and compiles what is missing
    python -m benchmarks.render                                       # writes docs/gpu-performance.md from the record

`run` writes its record after every case. It stops cleanly at --time-budget; --resume goes on where it stopped. Exit
code 1: a kernel was wrong, or a case has no time; 3: the GPU was lost, and a new process must go on with --resume.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.command_line import run_command
from benchmarks.gpu_layers.cases import DTYPES, PRESETS, Case, select_cases
from benchmarks.gpu_layers.layers import FILE, derive, layers, write
from benchmarks.records import RESULTS, environment

RECORD = RESULTS / "gpu_layers.json"
LOGS = ("shipped", "none")


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(_parser(), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu_layers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listing = commands.add_parser("layers", help="list the layers")
    listing.add_argument("--write", action="store_true", help="derive them from examples/networks anew")
    listing.set_defaults(call=_layers)
    winners = commands.add_parser("winners", help="print the fastest knobs of a record as a candidates file")
    winners.add_argument("record", type=Path)
    winners.set_defaults(call=_winners)
    log = commands.add_parser("log", help="add the fastest variants of a record to a tuning log")
    log.add_argument("record", type=Path)
    log.add_argument("--into", type=Path, required=True, metavar="DIR", help="the log")
    log.add_argument("--keep", type=int, default=3, metavar="N", help="variants of a case (default 3)")
    log.set_defaults(call=_log)
    for name, call, text in (
        ("prepare", _prepare, "compile kernels into a folder"),
        ("run", _run, "measure on the first GPU"),
    ):
        command = commands.add_parser(name, help=text)
        command.set_defaults(call=call)
        _add_cases(command)
        command.add_argument("--kernels", type=Path, default=Path("build/gpu-kernels"), help="the folder of kernels")
        command.add_argument("--jobs", type=int, default=max(1, len(os.sched_getaffinity(0)) - 1), help="compilers")
        command.add_argument("--compile-limit", type=float, default=300, metavar="S", help="seconds for one kernel")
        if name == "prepare":
            command.add_argument("--arch", default="sm_90", help="the GPU to compile for (default sm_90)")
        else:
            command.add_argument("--json", type=Path, default=RECORD, help="the record to write or add to")
            command.add_argument("--resume", action="store_true", help="leave out what the record has")
            command.add_argument("--time-budget", type=float, default=float("inf"), metavar="S", help="stop after this")
            command.add_argument("--peers", choices=("all", "dense", "none"), default="all")
            command.add_argument("--commit", help="the commit, where the tree came without its history")
    return parser


def _add_cases(command: argparse.ArgumentParser) -> None:
    command.add_argument("--preset", choices=PRESETS, default="quick")
    command.add_argument("--layers", type=_split, default=[], metavar="GLOBS", help="names, separated by commas")
    command.add_argument("--batch", type=_split, default=[], metavar="N,…", help="in place of the preset's")
    command.add_argument("--sparsity", type=_split, default=[], metavar="Z,…", help="in place of the preset's")
    command.add_argument("--dtype", choices=DTYPES, default="float32")
    command.add_argument("--templates", type=_split, default=["*"], metavar="GLOBS", help="of ours (default: all)")
    command.add_argument("--log", default="shipped", metavar="LOG", help="tuning log: a folder, shipped or none")
    command.add_argument("--candidates", type=Path, help="JSON of knobs to try; see variants.py")
    command.add_argument("--weights", type=Path, help="folder of published filters, for --preset real")
    command.add_argument("--seed", type=int, default=2026, help="of masks, values and inputs")


def _layers(options: argparse.Namespace) -> int:
    if options.write:
        FILE.write_text(write(derive()))
        layers.cache_clear()
    for layer in layers().values():
        print(f"{layer.name:15} {layer.workload(1)!s:60} {len(layer.nodes)}x, first {layer.nodes[0]}")
    return 0


def _winners(options: argparse.Namespace) -> int:
    from benchmarks.gpu_layers.store import Store
    from benchmarks.gpu_layers.variants import winners

    print(json.dumps(winners(Store(options.record).cases), indent=1))
    return 0


def _log(options: argparse.Namespace) -> int:
    from benchmarks.gpu_layers.store import Store
    from benchmarks.gpu_layers.tuning_records import tuning_records
    from tvm_sparse.tuning.log_files import LogWriter, make_log

    make_log(options.into)
    writer, records = LogWriter(options.into), list(tuning_records(Store(options.record), options.keep))
    for record in records:
        writer.append(record)
    print(f"{len(records)} records in {options.into}")
    return 0


def _prepare(options: argparse.Namespace) -> int:
    from benchmarks.gpu_layers.pool import CompilerPool
    from benchmarks.gpu_layers.run import prepare

    jobs = [job for own in _jobs(options, options.arch).values() for job in own]
    pool = CompilerPool(options.kernels, options.jobs, options.compile_limit)
    try:
        return prepare(jobs, pool, _tell)
    finally:
        pool.close()


def _run(options: argparse.Namespace) -> int:
    begin = time.monotonic()
    from benchmarks.gpu_layers.bounds import this_gpu

    device = this_gpu()
    if device is None:
        _tell("no NVIDIA GPU here, so nothing is measured (`prepare` works without one)")
        return 0
    from benchmarks.gpu_layers.build import source_digest
    from benchmarks.gpu_layers.graph_timer import FLUSH_BYTES, GraphTimer
    from benchmarks.gpu_layers.measure import Bench
    from benchmarks.gpu_layers.peers import CUDNN, DENSE, SPARSE
    from benchmarks.gpu_layers.pool import CompilerPool
    from benchmarks.gpu_layers.run import Limits, measure
    from benchmarks.gpu_layers.store import Store
    from tvm_sparse.tvm_support import enable_cuda

    enable_cuda()
    store = Store(options.json)
    jobs = _jobs(options, device.arch)
    dense = tuple(name for name in DENSE if name != "cudnn_bf16" or options.dtype == "bfloat16")
    peers = {"all": dense + SPARSE, "dense": tuple(name for name in dense if name in CUDNN), "none": ()}[options.peers]
    where = environment()
    conditions = {
        "environment": {**where, "commit": options.commit or where["commit"]},
        "sources": source_digest(),
        "device": {**vars(device), "l2_flush_bytes": FLUSH_BYTES},
        "libraries": _libraries(),
        "seed": options.seed,
        "log": options.log if options.log in LOGS else "a folder",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    pool = CompilerPool(options.kernels, options.jobs, options.compile_limit)
    try:
        bench = Bench("cuda", device, GraphTimer(), options.seed, options.weights)
        return measure(
            jobs,
            pool,
            bench,
            store,
            store.begin_run(conditions),
            peers=peers,
            resume=options.resume,
            limits=Limits(begin + options.time_budget),
            tell=_tell,
        )
    finally:
        pool.close()


def _jobs(options: argparse.Namespace, arch: str) -> dict[Case, list[Any]]:
    from benchmarks.gpu_layers.build import Job, job_target
    from benchmarks.gpu_layers.variants import read_candidates, variants_of
    from benchmarks.gpu_layers.weights import real_weights

    real = real_weights(options.weights) if options.weights else []
    digests = {weight.source: weight.digest for weight in real}
    cases = select_cases(
        options.preset,
        layers_like=options.layers,
        batches=[int(batch) for batch in options.batch],
        sparsities=[float(sparsity) for sparsity in options.sparsity],
        dtype=options.dtype,
        real=real,
    )
    candidates = read_candidates(options.candidates) if options.candidates else []
    target = job_target(arch)
    known = _known(options.log, target)
    jobs = {}
    for case in cases:
        filters = (options.weights, digests[case.source]) if case.source else (None, "")
        variants = variants_of(case, target, candidates, options.templates, known)
        jobs[case] = [Job(case, variant, arch, options.seed, *filters) for variant in variants]
    return jobs


def _known(log: str, target: Any) -> Any:
    """What `compile` would know of this log, or None."""
    if log == "none":
        return None
    from tvm_sparse.tuning.log_files import read_log, shipped_logs
    from tvm_sparse.tuning.lookup import KnownKernels

    read = read_log(shipped_logs() if log == "shipped" else log)
    for problem in read.problems:
        _tell(problem)
    return KnownKernels.for_target(read.records, target)


def _libraries() -> dict[str, Any]:
    import torch

    return {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}


def _split(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _tell(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
