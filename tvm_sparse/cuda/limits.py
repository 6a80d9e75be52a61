"""What a GPU can do at best, from the figures it gives itself: memory traffic and float32 arithmetic."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from tvm_sparse.cuda.runtime import CudaRuntime

#: float32 multiply-adds of an SM in one clock, by compute capability; 128 where not named.
LANES = {(8, 0): 64}
_ATTRIBUTES = {"clock_khz": 13, "sms": 16, "memory_khz": 36, "bus_bits": 37, "major": 75, "minor": 76}


@dataclass(frozen=True)
class Limits:
    """Of device memory, which moves two words a clock, and of float32 multiply-adds, two operations each."""

    bytes_per_s: float
    flop_per_s: float

    @classmethod
    def of_gpu(cls, index: int) -> Limits | None:
        """Those of a GPU; None where it does not say."""
        cuda = CudaRuntime()
        values = {}
        for name, number in _ATTRIBUTES.items():
            value = ctypes.c_int()
            try:
                cuda("cudaDeviceGetAttribute", ctypes.byref(value), number, index)
            except RuntimeError:
                return None
            values[name] = value.value
        lanes = LANES.get((values["major"], values["minor"]), 128)
        memory = 2 * values["memory_khz"] * 1e3 * values["bus_bits"] / 8
        arithmetic = 2 * values["sms"] * lanes * values["clock_khz"] * 1e3
        return cls(memory, arithmetic) if memory and arithmetic else None

    def bound_us(self, moved_bytes: int, flop: int) -> float:
        """The least time of work that moves so many bytes and does so many operations."""
        return max(moved_bytes / self.bytes_per_s, flop / self.flop_per_s) * 1e6
