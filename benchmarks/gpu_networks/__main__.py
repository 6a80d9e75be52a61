"""Time whole networks on an NVIDIA GPU: ours and dense torch, in one process.

    python -m benchmarks.gpu_networks prepare --preset quick      # compiles; needs no GPU
    python -m benchmarks.gpu_networks run --preset quick          # measures, and compiles what is missing
    python -m benchmarks.render                                   # writes docs/gpu-networks.md from the record

`run` writes its record after every case and stops cleanly at --time-budget; --resume goes on where it stopped. Exit
code 1: a network was wrong, was not compiled or could not be run; 3: the GPU was lost, and a new process must go on
with --resume.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.command_line import run_command
from benchmarks.gpu_networks.cases import PRECISIONS, PRESETS, select_cases
from benchmarks.records import RESULTS, environment

RECORD = RESULTS / "gpu_networks.json"


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(_parser(), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu_networks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, call, text in (
        ("prepare", _prepare, "compile libraries into a folder"),
        ("run", _run, "measure on the first GPU"),
    ):
        command = commands.add_parser(name, help=text)
        command.set_defaults(call=call)
        command.add_argument("--preset", choices=PRESETS, default="quick")
        command.add_argument("--networks", type=_split, default=[], metavar="GLOBS", help="in place of the preset's")
        command.add_argument("--batch", type=_split, default=[], metavar="N,…", help="in place of the preset's")
        command.add_argument("--sparsity", type=_split, default=[], metavar="Z,…", help="in place of 0.9")
        command.add_argument(
            "--precision",
            type=_split,
            default=[],
            metavar="P,…",
            help=f"of ours: {', '.join(PRECISIONS)} (default float32)",
        )
        command.add_argument("--weights", type=Path, help="folder of published filters, for networks that have some")
        command.add_argument("--log", default="shipped", help="tuning records: a folder, a file, shipped or none")
        command.add_argument("--seed", type=int, default=0, help="of weights and inputs")
        command.add_argument("--libraries", type=Path, default=Path("build/gpu-networks"), help="folder of libraries")
        command.add_argument("--jobs", type=int, default=max(1, len(os.sched_getaffinity(0)) - 1), help="compilers")
        command.add_argument("--compile-limit", type=float, default=900, metavar="S", help="seconds for one network")
        if name == "prepare":
            command.add_argument("--arch", default="sm_90", help="the GPU to compile for (default sm_90)")
            continue
        command.add_argument("--json", type=Path, default=RECORD, help="the record to write or add to")
        command.add_argument("--resume", action="store_true", help="leave out what the record has")
        command.add_argument("--time-budget", type=float, default=float("inf"), metavar="S", help="stop after this")
        command.add_argument("--rounds", type=int, default=11, help="samples of every candidate")
        command.add_argument(
            "--torch-compile",
            type=_split,
            default=["resnet50-1", "resnet50-32"],
            metavar="GLOBS",
            help="cases, as NETWORK-BATCH, in which torch.compile is tried too; none for no case",
        )
        command.add_argument("--torch-compile-mode", default="default", help="of torch.compile")
        command.add_argument("--torch-compile-limit", type=float, default=120, metavar="S", help="seconds for one form")
        command.add_argument(
            "--endurance", type=_split, default=["resnet50-1"], metavar="GLOBS", help="cases that run 10000 calls"
        )
        command.add_argument("--commit", help="the commit, where the tree came without its history")
    return parser


def _prepare(options: argparse.Namespace) -> int:
    from benchmarks.gpu_layers.pool import BuildError
    from benchmarks.gpu_layers.run import BAD, OK
    from benchmarks.gpu_networks.build import prepare

    with _pool(options) as pool:
        results = prepare(_jobs(options, options.arch), pool, _tell)
    return BAD if any(isinstance(result, BuildError) for result in results.values()) else OK


def _run(options: argparse.Namespace) -> int:
    begin = time.monotonic()
    from benchmarks.gpu_layers.bounds import this_gpu

    device = this_gpu()
    if device is None:
        _tell("no NVIDIA GPU here, so nothing is measured (`prepare` works without one)")
        return 0
    from benchmarks.gpu_layers.store import Store
    from benchmarks.gpu_networks.run import measure

    jobs = _jobs(options, device.arch)
    store = Store(options.json)
    number = store.begin_run(_conditions(options, device, jobs[0].log_digest))
    with _pool(options) as pool:
        return measure(jobs, pool, store, number, options, stop_at=begin + options.time_budget, tell=_tell)


def _conditions(options: argparse.Namespace, device: Any, log: str) -> dict[str, Any]:
    import torch

    from benchmarks.gpu_networks.build import source_digest

    where = environment()
    return {
        "environment": {**where, "commit": options.commit or where["commit"]},
        "sources": source_digest(),
        "log": log,
        "device": vars(device),
        "libraries": {
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "torch_compile_mode": options.torch_compile_mode,
        },
        "seed": options.seed,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _jobs(options: argparse.Namespace, arch: str) -> list[Any]:
    from benchmarks.gpu_networks.build import Job
    from benchmarks.gpu_networks.weights import networks_published

    cases = select_cases(
        options.preset,
        networks_like=options.networks,
        batches=[int(batch) for batch in options.batch],
        sparsities=[float(sparsity) for sparsity in options.sparsity],
        published=networks_published(options.weights) if options.weights else (),
        precisions=options.precision,
    )
    return [Job(case, arch, options.seed, options.log, options.weights) for case in cases]


def _pool(options: argparse.Namespace) -> Any:
    from contextlib import closing

    from benchmarks.gpu_layers.pool import CompilerPool
    from benchmarks.gpu_networks.build import compile_network

    return closing(CompilerPool(options.libraries, options.jobs, options.compile_limit, compile_network))


def _split(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _tell(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    # Ended from outside it ends its compilers too, which would disturb the next measurement.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
