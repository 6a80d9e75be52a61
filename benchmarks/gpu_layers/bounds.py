"""What a GPU allows a sparse convolution at best, and which limit binds.

- operands: every multiply-add takes one operand from shared memory, 128 bytes a clock and SM: 32 float32 or 64 16-bit
  ones. Code that keeps operands in registers can pass this bound.
- memory: input and output once, and each nonzero's value and 4-byte place once.
- arithmetic: the float32 multiply-adds of the nonzeros.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from tvm_sparse.workload import ELEMENT_BYTES, ConvWorkload

OPERAND_BYTES_PER_CLOCK = 128
PLACE_BYTES = 4
#: float32 multiply-adds of an SM in one clock, by compute capability; 128 where not named.
LANES = {"8.0": 64}
_ATTRIBUTES = {"clock_khz": 13, "sms": 16, "memory_khz": 36, "bus_bits": 37, "major": 75, "minor": 76}


@dataclass(frozen=True)
class Device:
    """A GPU's name, compute capability "9.0", SMs, clocks (boost) and width of the memory bus."""

    name: str
    capability: str
    sms: int
    clock_khz: int
    memory_khz: int
    bus_bits: int

    @property
    def arch(self) -> str:
        return "sm_" + self.capability.replace(".", "")

    @property
    def clock_hz(self) -> float:
        return self.clock_khz * 1e3

    @property
    def bytes_per_s(self) -> float:
        """Of device memory, which moves two words a clock."""
        return 2 * self.memory_khz * 1e3 * self.bus_bits / 8

    def operand_flop_per_s(self, dtype: str) -> float:
        return 2 * self.sms * OPERAND_BYTES_PER_CLOCK / ELEMENT_BYTES[dtype] * self.clock_hz

    @property
    def flop_per_s(self) -> float:
        return 2 * self.sms * LANES.get(self.capability, 128) * self.clock_hz


def bounds_us(device: Device, workload: ConvWorkload, nnz: int) -> dict[str, float]:
    """The least time each limit allows, in microseconds."""
    pixels = workload.n * workload.p * workload.q
    flop = 2 * nnz * pixels
    size = ELEMENT_BYTES[workload.dtype]
    elements = workload.n * workload.c * workload.h * workload.w + workload.k * pixels
    moved = size * elements + (size + PLACE_BYTES) * nnz
    return {
        "operands": flop / device.operand_flop_per_s(workload.dtype) * 1e6,
        "memory": moved / device.bytes_per_s * 1e6,
        "arithmetic": flop / device.flop_per_s * 1e6,
    }


def binding(bounds: dict[str, float]) -> str:
    """The limit that takes longest."""
    return max(bounds, key=lambda name: bounds[name])


def this_gpu() -> Device | None:
    """The first GPU, asked through its driver; None where there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        failed = driver.cuInit(0)
    except (OSError, AttributeError):  # no driver, or the stub of tvm_support in its place
        return None
    handle, name = ctypes.c_int(), ctypes.create_string_buffer(100)
    if failed or driver.cuDeviceGet(ctypes.byref(handle), 0):
        return None
    driver.cuDeviceGetName(name, len(name), handle)
    values = {}
    for key, attribute in _ATTRIBUTES.items():
        value = ctypes.c_int()
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle):
            return None
        values[key] = value.value
    capability = f"{values.pop('major')}.{values.pop('minor')}"
    return Device(name.value.decode(), capability, **values)
