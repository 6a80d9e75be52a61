"""How many CPU threads TVM's runtime uses.

TVM keeps one pool of workers per calling thread. Left alone a pool takes half the logical CPUs and pins the calling
thread to the first one, which slows down everything else in the process. So each calling thread configures its pool
before its first call: as many workers as usable CPUs, none pinned, `threads` of them used.
"""

from __future__ import annotations

import threading
from typing import Any

from tvm_sparse.deploy.machine import default_threads, usable_cpus
from tvm_sparse.errors import InputError

_SHARE_ALL_CPUS = -3  # ThreadGroup::kSpecifyThreadShareAllCore
_configured = threading.local()


class ThreadPool:
    """The wish for a number of threads, carried out in whichever thread calls.

    Raises
    ------
    InputError
        `threads` is not between 1 and the number of usable CPUs, or a pool that TVM already started is smaller.
    """

    def __init__(self, tvm_ffi: Any, threads: int | None) -> None:
        self._cpus = usable_cpus()
        if threads is not None and not 1 <= threads <= len(self._cpus):
            raise InputError(f"{threads} threads: this process may use 1 to {len(self._cpus)}")
        self._configure = tvm_ffi.get_global_func("runtime.config_threadpool")
        self.threads = threads or default_threads()
        self.use()
        got = int(tvm_ffi.get_global_func("runtime.NumThreads")())
        if threads is not None and got != threads:
            raise InputError(
                f"{threads} threads: TVM already started {got} in this process: set TVM_NUM_THREADS={threads} before it"
            )
        self.threads = got

    def use(self) -> None:
        """Configure the calling thread's pool, unless it is."""
        if getattr(_configured, "threads", None) != self.threads:
            self._configure(_SHARE_ALL_CPUS, self.threads, [str(cpu) for cpu in self._cpus])
            _configured.threads = self.threads
