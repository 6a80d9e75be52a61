"""Give TVM's thread pool all usable CPUs and leave the process unpinned.

On x86 TVM takes half the logical CPUs, also where there is no hyper-threading, and pins the calling thread to the first
of them, which slows down everything else in the process. A pool cannot grow once it has started, so this comes before
anything runs. Needless once TVM counts cores and does not pin its caller.
"""

from __future__ import annotations

import os
from typing import Any

_SHARE_ALL_CPUS = -3  # ThreadGroup::kSpecifyThreadShareAllCore


def widen_thread_pool(tvm: Any) -> None:
    """Start the calling thread's pool with one worker per usable CPU; pools of other threads start as wide."""
    cpus = sorted(os.sched_getaffinity(0))
    tvm.get_global_func("runtime.config_threadpool")(_SHARE_ALL_CPUS, len(cpus), [str(cpu) for cpu in cpus])
