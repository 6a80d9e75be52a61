"""Worker processes as a pool: a call that crashes or hangs costs one process, never the tuner."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

#: Calls after which a process is replaced: TVM's compiler never gives some memory back.
MOST_USES = 200
START_TIMEOUT_S = 120.0
#: Threads that numpy's library keeps for itself spin for a while after each product, in the way of what is measured.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_ROOT = str(Path(__file__).resolve().parents[2])


class WorkerCrash(Exception):
    """The process ended within the call; the message says how."""


class WorkerError(Exception):
    """The call raised; the message is that of the exception in one line."""


class Worker:
    """One process, started when it is first needed. Not for two threads at once.

    `setup` is a function and its arguments, called in every fresh process.
    """

    def __init__(self, setup: tuple[Callable[..., Any], tuple[Any, ...]]) -> None:
        self._setup = setup
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._uses = 0

    def start(self) -> None:
        """Start the process unless it runs."""
        if self._process is not None and self._process.poll() is None and self._uses < MOST_USES:
            return
        self.kill()
        ours, theirs = multiprocessing.Pipe()
        search = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tvm_sparse.tuning.worker", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **ONE_THREAD, "PYTHONPATH": search},
            start_new_session=True,  # Ctrl-C is the tuner's business, and its children die with it
        )
        theirs.close()
        self._connection, self._uses = ours, 0
        self._exchange(*self._setup, timeout_s=START_TIMEOUT_S)

    def call(self, function: Callable[..., Any], *arguments: Any, timeout_s: float) -> Any:
        """The answer of a module-level function called in the process.

        Raises
        ------
        TimeoutError, WorkerCrash, WorkerError
            It took longer, ended the process, or raised.
        """
        self.start()
        self._uses += 1
        return self._exchange(function, arguments, timeout_s=timeout_s)

    def end(self) -> None:
        """End the process and whatever it started; from any thread, its own then finds it ended."""
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)

    def kill(self) -> None:
        """End the process, and forget it."""
        self.end()
        if self._process is not None:
            self._process.wait()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None

    def _exchange(self, function: Callable[..., Any], arguments: tuple[Any, ...], *, timeout_s: float) -> Any:
        process, connection = self._process, self._connection
        assert process is not None and connection is not None
        try:
            connection.send((function, arguments))
            if not connection.poll(timeout_s):
                self.kill()
                raise TimeoutError(f"no answer within {timeout_s:g} s")
            fine, answer = connection.recv()
        except (EOFError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            self.kill()
            raise WorkerCrash(_end_of(process.returncode)) from None
        if not fine:
            raise WorkerError(answer[0])
        return answer


class WorkerPool:
    """Several workers that take calls in turn; every one has its own setup.

    `fragile` replaces a process also after a call that raised: an illegal access to memory spoils a GPU's context.
    """

    def __init__(self, setups: list[tuple[Callable[..., Any], tuple[Any, ...]]], *, fragile: bool = False) -> None:
        self._fragile = fragile
        self._workers = [Worker(setup) for setup in setups]
        self._free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._free.put(worker)
        self._threads = ThreadPoolExecutor(len(setups))
        self._under_way: set[Future[Any]] = set()
        self._closed = False

    @property
    def size(self) -> int:
        return len(self._workers)

    def start(self) -> list[Future[float]]:
        """Start every process; the futures tell in how many seconds."""
        return [self._threads.submit(self._start) for _ in self._workers]

    def submit(self, function: Callable[..., Any], *arguments: Any, timeout_s: float, attempts: int = 1) -> Future[Any]:
        """Call a function in a free worker, so often at most until it neither raises nor crashes; see Worker.call."""
        future = self._threads.submit(self._call, function, arguments, timeout_s, attempts)
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        return future

    def settle(self) -> None:
        """Wait until no call is under way, so that nothing here keeps a CPU busy."""
        wait(self._under_way.copy())

    def close(self) -> None:
        """End every process now, whatever it does."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        while self._free.qsize() < len(self._workers):  # until every call has found its process ended
            for worker in self._workers:
                worker.end()
            time.sleep(0.01)
        for worker in self._workers:
            worker.kill()

    def _start(self) -> float:
        began = time.perf_counter()
        worker = self._free.get()
        try:
            if not self._closed:
                worker.start()
        finally:
            self._free.put(worker)
        return time.perf_counter() - began

    def _call(self, function: Callable[..., Any], arguments: tuple[Any, ...], timeout_s: float, attempts: int) -> Any:
        worker = self._free.get()
        try:
            while True:
                attempts -= 1
                try:
                    if self._closed:
                        raise WorkerCrash("the pool is closed")
                    return worker.call(function, *arguments, timeout_s=timeout_s)
                except (WorkerCrash, WorkerError):
                    if self._fragile:
                        worker.kill()
                    if self._closed or attempts < 1:
                        raise
        finally:
            self._free.put(worker)


def _end_of(code: int | None) -> str:
    if code is None or code >= 0:
        return f"the process ended with exit code {code}"
    try:
        return f"the process was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"the process was ended by signal {-code}"
