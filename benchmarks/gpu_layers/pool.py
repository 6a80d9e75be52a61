"""Compilers in processes of their own, so that one that hangs or crashes costs one kernel and nothing else."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.gpu_layers.build import Built, Job, build, built
from tvm_sparse.errors import InputError

_SPAWN = multiprocessing.get_context("spawn")


class BuildError(Exception):
    """A kernel could not be compiled; the message says why."""


class Refusal(BuildError):
    """The template does not take this filter with these knobs."""


class CompilerPool:
    """`jobs` compilers that write into a folder; one that takes longer than `limit_s` seconds is killed.

    `compile_job` stands in for `build` in tests.
    """

    def __init__(self, folder: Path, jobs: int, limit_s: float, compile_job: Any = build) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._limit_s, self._compile_job = folder, limit_s, compile_job
        self._threads = ThreadPoolExecutor(max(1, jobs))
        self._own = threading.local()
        self._workers: set[_Worker] = set()
        self._futures: dict[str, Future[Built]] = {}

    def submit(self, job: Job) -> Future[Built]:
        """The kernel of a job, at once if the folder has it. The future's exception is a BuildError."""
        key = job.key
        if key not in self._futures:
            if found := built(self._folder, key):
                self._futures[key] = Future()
                self._futures[key].set_result(found)
            else:
                self._futures[key] = self._threads.submit(self._run, job)
        return self._futures[key]

    def close(self) -> None:
        """Give up what is not compiled yet."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in list(self._workers):
            worker.kill()
        self._threads.shutdown(wait=True)

    def _run(self, job: Job) -> Built:
        worker = getattr(self._own, "worker", None)
        if worker is None:
            worker = self._own.worker = _Worker(self._compile_job)
            self._workers.add(worker)
        try:
            return worker.run(job, self._folder, self._limit_s)
        except (EOFError, OSError, TimeoutError) as error:
            self._workers.discard(worker)
            self._own.worker = None
            code = worker.kill()
            what = str(error) if isinstance(error, TimeoutError) else f"the compiler crashed, exit code {code}"
            raise BuildError(what) from None


class _Worker:
    """A process that compiles one job after another, and the leader of its group, so that nvcc dies with it."""

    def __init__(self, compile_job: Any) -> None:
        self._connection, child = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_serve, args=(child, compile_job), daemon=True)
        self._process.start()
        child.close()

    def run(self, job: Job, folder: Path, limit_s: float) -> Built:
        self._connection.send((job, folder))
        if not self._connection.poll(limit_s):
            raise TimeoutError(f"not compiled within {limit_s:g} s")
        result = self._connection.recv()
        if isinstance(result, BuildError):
            raise result
        return result

    def kill(self) -> int | None:
        if self._process.is_alive():
            for kill in (os.killpg, os.kill):
                with contextlib.suppress(OSError):
                    kill(self._process.pid or 0, signal.SIGKILL)
        self._process.join(timeout=5)
        return self._process.exitcode


def _serve(connection: Connection, compile_job: Any) -> None:
    os.setsid()
    while True:
        try:
            job, folder = connection.recv()
        except EOFError:
            return
        try:
            result: Built | BuildError = compile_job(job, folder)
        except InputError as error:
            result = Refusal(str(error))
        except Exception as error:  # every failure of a compiler is a finding
            text = f"{type(error).__name__}: {error}"
            result = BuildError(text if len(text) < 400 else f"{text[:200]} ... {text[-200:]}")
        connection.send(result)
