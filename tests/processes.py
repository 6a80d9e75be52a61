"""What the kernel says about a process and its threads."""

from __future__ import annotations

import os
import time
from collections.abc import Callable


def cpus_of_threads() -> list[set[int]]:
    """The CPUs that each thread of this process may use; threads come and go meanwhile."""
    found = []
    for thread in os.listdir("/proc/self/task"):
        try:
            found.append(os.sched_getaffinity(int(thread)))
        except ProcessLookupError:
            continue
    return found


def comes_true(condition: Callable[[], bool], within_s: float = 10.0) -> bool:
    """Whether it holds by then, asked again and again."""
    end = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
