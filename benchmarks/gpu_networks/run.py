"""Measure cases: first all is compiled, then the machine is quiet and every case has it for itself."""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.gpu_layers.pool import BuildError, CompilerPool
from benchmarks.gpu_layers.run import BAD, LOST, OK
from benchmarks.gpu_layers.store import Record, Store
from benchmarks.gpu_networks.build import Job, prepare
from benchmarks.gpu_networks.cases import chosen
from benchmarks.gpu_networks.measure import Conditions, device_lost, measure_case
from tvm_sparse.peers.candidates import Compiling
from tvm_sparse.verification import HALF_PRECISION_STEPS

#: Largest relative error of a right network, by its precision: as verification has it.
TOLERANCES = {
    "float32": 1e-4,
    "float16": HALF_PRECISION_STEPS * 2.0**-10,
    "bfloat16": HALF_PRECISION_STEPS * 2.0**-7,
}


def measure(
    jobs: Sequence[Job],
    pool: CompilerPool,
    store: Store,
    run: int,
    options: argparse.Namespace,
    *,
    stop_at: float,
    tell: Callable[[str], None],
) -> int:
    """Measure every case into the store; the exit code. See __main__.py for the options."""
    todo = [job for job in jobs if not (options.resume and _finished(store, job, run))]
    outcomes: Counter[str] = Counter({"left out": len(jobs) - len(todo)})
    results = prepare(todo, pool, tell)
    for number, (job, built) in enumerate(results.items(), start=1):
        if time.monotonic() >= stop_at:
            outcomes["not measured: out of time"] = len(todo) - number + 1
            break
        begin = time.monotonic()
        if isinstance(built, BuildError):
            record: Record = {**vars(job.case), "failed": f"compile: {built}"}
        else:
            record = _measured(job, built.library, options, tell)
            record["compile_s"] = built.seconds
        store.add(job.case.key, record, {}, run)
        outcomes[outcome(record)] += 1
        if record.get("lethal"):
            tell(f"{job.case.key}: the GPU was lost ({record['failed']}): run again with --resume")
            return LOST
        tell(f"[{number}/{len(todo)}] {line(job.case.key, record)}  ({time.monotonic() - begin:.0f} s)")
    tell("; ".join(f"{count} {what}" for what, count in outcomes.items() if count))
    return BAD if outcomes["wrong"] or outcomes["without a time"] else OK


def _measured(job: Job, library: Any, options: argparse.Namespace, tell: Callable[[str], None]) -> Record:
    mode = options.torch_compile_mode if chosen(job.case, options.torch_compile) else None
    conditions = Conditions(
        seed=options.seed,
        rounds=options.rounds,
        compiling=Compiling(mode, options.torch_compile_limit),
        endurance=chosen(job.case, options.endurance),
        threads=len(os.sched_getaffinity(0)),
        weights=options.weights,
    )
    try:
        return measure_case(job.case, library, conditions, lambda text: tell(f"  {job.case.key}: {text}"))
    except Exception as error:  # whatever TVM or torch raise: a network that cannot be run is a finding
        reason = f"run: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return {**vars(job.case), "failed": reason, **({"lethal": True} if device_lost() else {})}


def errors(record: Record) -> list[float]:
    """The relative errors of ours in a record."""
    return [record[name] for name in ("relative_error", "onnxruntime_error") if name in record]


def outcome(record: Record) -> str:
    """What became of a case, in a word or two."""
    if "ours" not in record:
        return "without a time"
    return "measured" if all(error <= TOLERANCES[record["precision"]] for error in errors(record)) else "wrong"


def line(key: str, record: Record) -> str:
    """A case in one line: our time, and how many times faster it is than each form of torch."""
    if "ours" not in record:
        return f"{key}: {record['failed']}"
    ours = record["ours"]
    wrong = "WRONG, " if outcome(record) == "wrong" else ""
    texts = [
        f"{wrong}{ours['median_us']:.1f} us (latency {ours['latency_us']:.1f}, host {ours['host_us']:.1f}, "
        f"error {max(errors(record)):.0e})"
    ]
    for peer in record["peers"]:
        form = f"{peer['precision']} {peer['layout']} {peer['how']}"
        if peer["time"] is None:
            texts.append(f"{form}: {peer['note'][:100]}")
        else:
            texts.append(f"{form} {peer['time']['median_us']:.1f} us {peer['speed_up']:.2f}x")
    if endurance := record.get("endurance"):
        texts.append(str(endurance))
    return f"{key}: " + "; ".join(texts)


def _finished(store: Store, job: Job, run: int) -> bool:
    record = store.case(job.case.key)
    if record is None or not ("ours" in record or record.get("lethal")):
        return False
    before, now = store.runs[record["run"]], store.runs[run]
    return all(before[name] == now[name] for name in ("sources", "log"))
