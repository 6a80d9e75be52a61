"""What schedules ask of a GPU target: the limits of one block of threads."""

from __future__ import annotations

from tvm.target import Target

#: What every CUDA GPU allows without being asked.
PLAIN_SHARED_BYTES = 49152


def shared_limit(target: Target) -> int:
    """Bytes of shared memory one block may use."""
    return int(target.attrs.get("max_shared_memory_per_block", PLAIN_SHARED_BYTES))


def thread_limit(target: Target) -> int:
    """Threads of one block."""
    return int(target.attrs.get("max_threads_per_block", target.attrs["max_num_threads"]))


def copies_asynchronously(target: Target) -> bool:
    """Whether a CUDA GPU copies to shared memory by cp.async (sm_80 and later)."""
    version = "".join(filter(str.isdigit, str(target.attrs.get("arch", ""))))
    return int(version or 0) >= 80
