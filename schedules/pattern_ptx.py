"""The nonzeros of a row group and chunk as a function of CUDA whose body is PTX, an instruction for each of them.

Statements of TIR or C would go through all passes of TVM and of nvcc, which have nothing to improve on them and take
most of the time to compile. As the text of one function they are copied, up to the assembler: that allocates the
registers and orders the instructions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tvm_sparse.compute.pair_tiling import PAIR

#: The first characters of the names of these functions.
PREFIX = "nonzeros_"
#: How CUDA calls an element of the input.
C_TYPES = {"float32": "float", "float16": "half", "bfloat16": "nv_bfloat16"}
#: From the 16 bits `h` to float32 `x`; a bfloat16 is the upper half of one.
_WIDEN = {"float16": "cvt.f32.f16 {x}, {h};", "bfloat16": "mov.b32 {x}, {{zero, {h}}};"}


@dataclass(frozen=True)
class Loads:
    """How a thread loads input elements of `dtype`, or with `paired` two neighbours at once, and what it sums in.

    They lie in memory of `scope`, "shared" or "global". `sums` is the dtype of the sums over the nonzeros, "float32",
    or "float16" for pairs.
    """

    dtype: str
    scope: str
    paired: bool = False
    sums: str = "float32"

    @property
    def in_pairs(self) -> bool:
        """Whether a sum is a pair of them in one register."""
        return self.sums == "float16"

    def registers(self) -> list[str]:
        """Declarations of what an element goes through."""
        if self.in_pairs:
            return [".reg .b32 x, number;"]
        if self.dtype == "float32":
            return [".reg .f32 x;"]
        zero = [".reg .b16 zero;", "mov.b16 zero, 0;"] if self.dtype == "bfloat16" else []
        own = [".reg .b32 both;", ".reg .b16 low, high;", ".reg .f32 x, y;"] if self.paired else []
        return [*(own or [".reg .b16 low;", ".reg .f32 x;"]), *zero]

    def load(self, place: str) -> list[str]:
        """An element, or both of a pair, in float32 or as a pair."""
        # Made an ordinary load where kernels in front may still write what this one reads: see dependent_launch.
        memory = "ld.shared" if self.scope == "shared" else "ld.global.nc"
        if self.in_pairs:
            return [f"{memory}.b32 x, {place};"]
        if self.dtype == "float32":
            return [f"{memory}.f32 x, {place};"]
        widen = _WIDEN[self.dtype]
        if not self.paired:
            return [f"{memory}.b16 low, {place};", widen.format(x="x", h="low")]
        both = [f"{memory}.b32 both, {place};", "mov.b32 {low, high}, both;"]
        return [*both, widen.format(x="x", h="low"), widen.format(x="y", h="high")]

    def multiply_add(self, sums: Sequence[int], bits: int) -> list[str]:
        """sums += number * element, for a number of these bits, in operands of these numbers."""
        if self.in_pairs:
            (total,) = sums
            return [f"mov.b32 number, 0x{bits:04x}{bits:04x};", f"fma.rn.f16x2 %{total}, x, number, %{total};"]
        return [f"fma.rn.f32 %{total}, {x}, 0f{bits:08x}, %{total};" for total, x in zip(sums, "xy", strict=False)]


def nonzero_function(loads: Loads, weight: NDArray, offsets: Sequence[int]) -> tuple[str, str]:
    """Name and text of a function `(float* part, const ELEMENT* x)` that adds up the products of some columns.

    Parameters
    ----------
    weight : (rows, columns) float; part[v] += weight[v, j] * x[offsets[j]], or, of pairs, part[v, pair] that much
    offsets : (columns,) in elements; of a pair, of the first one

    Notes
    -----
    A column is loaded once, unless all of it is zero. The text is valid for CUDA C++ of nvcc and NVRTC.
    """
    wide = np.dtype(loads.sums)
    bits = weight.astype(wide).view(f"uint{8 * wide.itemsize}")
    used = np.flatnonzero(weight.any(axis=1)).tolist()
    pixels = PAIR if loads.paired else 1
    each = 1 if loads.in_pairs else pixels
    operands = {v: range(first * each, (first + 1) * each) for first, v in enumerate(used)}
    size = 4 if loads.dtype == "float32" else 2
    address = f"%{len(used) * each}"

    lines = loads.registers()
    for column in np.flatnonzero(weight.any(axis=0)).tolist():
        lines += loads.load(f"[{address}+{offsets[column] * size}]")
        for v in np.flatnonzero(weight[:, column]).tolist():
            lines += loads.multiply_add(operands[v], int(bits[v, column]))

    places = [f"part[{v * pixels + pixel}]" for v in used for pixel in range(pixels)]
    before, after, kind = [], [], "+f"
    if loads.in_pairs:
        before = [f"unsigned sums[{len(used)}] = {{}};"]
        halves = [f"(float)((half2*)&sums[{first}])->{half}" for first in range(len(used)) for half in "xy"]
        after = [f"{place} += {half};" for place, half in zip(places, halves, strict=True)]
        places, kind = [f"sums[{first}]" for first in range(len(used))], "+r"
    results = ", ".join(f'"{kind}"({place})' for place in places)
    shared = loads.scope == "shared"
    given = '"r"((unsigned)__cvta_generic_to_shared(x))' if shared else '"l"(__cvta_generic_to_global(x))'
    code = "\n    ".join(lines)
    body = [*before, f'asm volatile(R"({{\n    {code}\n  }})"', f'  : {results} : {given} : "memory");', *after]
    indented = "\n  ".join(body)
    parameters = f"(float* part, const {C_TYPES[loads.dtype]}* x)"
    name = PREFIX + hashlib.sha256(f"{parameters}{indented}".encode()).hexdigest()[:16]
    return name, f"\n__forceinline__ __device__ void {name}{parameters} {{\n  {indented}\n}}\n"
