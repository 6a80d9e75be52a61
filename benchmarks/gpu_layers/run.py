"""Measure cases, those whose kernels are compiled first, while the kernels of the others are being compiled."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, as_completed, wait
from dataclasses import dataclass
from functools import partial

from benchmarks.gpu_layers.build import Built, Job
from benchmarks.gpu_layers.cases import Case
from benchmarks.gpu_layers.measure import Attempt, Bench, DeviceLost, measure_case
from benchmarks.gpu_layers.pool import BuildError, CompilerPool, Refusal
from benchmarks.gpu_layers.store import Record, Store

#: Exit codes: all well; something wrong or without a time; the device was lost and a new process must go on.
OK, BAD, LOST = 0, 1, 3
#: How long compilers are waited for before the time budget is looked at again.
WAIT_S = 1.0


@dataclass(frozen=True)
class Limits:
    """When to stop: at `stop_at` of time.monotonic(), in between cases."""

    stop_at: float = float("inf")

    def reached(self) -> bool:
        return time.monotonic() >= self.stop_at


def prepare(jobs: Sequence[Job], pool: CompilerPool, tell: Callable[[str], None]) -> int:
    """Compile all jobs but the last resorts, which `measure` compiles where it needs them; 1 if a default one fails."""
    names = {pool.submit(job): job for job in jobs if not job.variant.last_resort}
    failed = []
    for done, future in enumerate(as_completed(names), start=1):
        job = names[future]
        label = f"[{done}/{len(names)}] {job.case.key} {job.variant.template}"
        try:
            tell(f"{label}: {future.result().seconds:.1f} s")
        except Refusal as error:
            tell(f"{label}: refused: {error}")
        except BuildError as error:
            tell(f"{label} {job.variant.knobs}: FAILED: {error}")
            failed.append(job)
    return BAD if any(job.variant.default for job in failed) else OK


def measure(
    jobs: Mapping[Case, Sequence[Job]],
    pool: CompilerPool,
    bench: Bench,
    store: Store,
    run: int,
    *,
    peers: Sequence[str],
    resume: bool,
    limits: Limits,
    tell: Callable[[str], None],
) -> int:
    """Measure every case into the store; the exit code.

    With `resume` a case that the store has from the same sources is left out, and so are dense peers of any run.
    """
    todo = [case for case in jobs if not (resume and _finished(store, case, run))]
    futures = {case: [pool.submit(job) for job in jobs[case] if not job.variant.last_resort] for case in todo}
    outcomes: Counter[str] = Counter()
    begin, number = time.monotonic(), 0
    while futures:
        if limits.reached():
            outcomes["not measured: out of time"] = len(futures)
            break
        case = _next(futures)
        if case is None:
            continue
        waited, number = time.monotonic() - begin, number + 1
        known = store.dense(case.layer, case.batch, None if resume else run)
        del futures[case]
        attempts = [Attempt(job.variant, job.key, partial(_compiled, pool, job)) for job in jobs[case]]
        try:
            record, dense = measure_case(bench, case, attempts, peers=peers, known_dense=known, lethal=store.lethal)
        except DeviceLost as error:
            if error.key:
                store.add_lethal(error.key)
            tell(f"{case.key}: the GPU was lost ({error}, kernel {error.key or 'of a peer'}): run again with --resume")
            return LOST
        store.add(case.key, record, dense, run)
        outcomes[outcome(record)] += 1
        took = time.monotonic() - begin - waited
        begin = time.monotonic()
        text = line(case.key, record, {**known, **dense})
        tell(f"[{number}/{len(todo)}] {text}  ({waited:.0f} s for compilers, {took:.1f} s)")
    outcomes.update({"left out": len(jobs) - len(todo)} if len(jobs) > len(todo) else {})
    tell("; ".join(f"{count} {what}" for what, count in outcomes.items()))
    return BAD if any(outcomes[what] for what in ("wrong", "without a time")) else OK


def outcome(record: Record) -> str:
    """What became of a case, in a word or two."""
    if any(row.get("wrong") for row in record["variants"]):
        return "wrong"
    return "measured" if "ours" in record else "without a time"


def line(key: str, record: Record, dense: Record) -> str:
    """A case in one line: our time, and how many times faster it is than its peers."""
    ours = record.get("ours")
    rows = record["variants"]
    bad = [f"{row['template']} WRONG ({row['error']})" for row in rows if row.get("wrong")]
    bad += [f"{row['template']} {row['failed'][:80]}" for row in rows if "failed" in row]
    bad += [record["failed"]] if "failed" in record else []
    if ours is None:
        return f"{key}: no time; {'; '.join(bad)}"
    us = ours["time"]["median_us"]
    times = {**dense, **record.get("sparse_peers", {})}
    ratios = [f"{name} {peer['median_us'] / us:.2f}x" for name, peer in times.items() if "median_us" in peer]
    text = (
        f"{key}: {us:.2f} us {ours['template']} "
        f"(warm code {ours['warm_icache']['median_us']:.2f}, cold L2 {ours['cold_l2']['median_us']:.2f}, "
        f"{ours['share_of_bound'][record['binding']]:.0%} of {record['binding']}, error {ours['error']:.0e})"
    )
    return "; ".join([text, *([" ".join(ratios)] if ratios else []), *bad])


def _finished(store: Store, case: Case, run: int) -> bool:
    record = store.case(case.key)
    return record is not None and store.runs[record["run"]]["sources"] == store.runs[run]["sources"]


def _compiled(pool: CompilerPool, job: Job) -> Built:
    return pool.submit(job).result()


def _next(futures: Mapping[Case, Sequence[Future[Built]]]) -> Case | None:
    """The first case whose kernels are all compiled; None after a while without one."""
    for case, kernels in futures.items():
        if all(kernel.done() for kernel in kernels):
            return case
    pending = {kernel for kernels in futures.values() for kernel in kernels if not kernel.done()}
    wait(pending, timeout=WAIT_S, return_when=FIRST_COMPLETED)
    return None
