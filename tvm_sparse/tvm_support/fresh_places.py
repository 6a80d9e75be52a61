"""Let a kernel work out where its copies go in every step of a loop, not once before the loop.

nvcc keeps in registers what is the same in every step. A kernel with a sum in nearly every register has none to spare
for that: it spills, and each of its loads stands right in front of what uses it. Needless once TVM's TIR can say that
an expression is to be evaluated where it stands.
"""

from __future__ import annotations

import re
from typing import Any

_NAME = "places_from_here_on"
_MARK = f"\n__forceinline__ __device__ void {_NAME}() {{\n}}\n"
#: To the compiler these could have changed.
_FRESH = (
    "int fresh_thread = (int)threadIdx.x, fresh_block = (int)blockIdx.x; "
    'asm volatile("" : "+r"(fresh_thread), "+r"(fresh_block));'
)
_COORDINATES = {"((int)threadIdx.x)": "fresh_thread", "((int)blockIdx.x)": "fresh_block"}


def places_from_here_on() -> Any:
    """A statement of TIR: up to the end of its block nothing that depends on thread or block is known from before."""
    from tvm import tirx
    from tvm.backend.cuda.op import cuda_func_call

    return tirx.Evaluate(cuda_func_call(_NAME, source_code=_MARK))


def with_fresh_places(source: str) -> str:
    """TVM's CUDA source with these statements carried out."""
    lines: list[str] = []
    inside: int | None = None
    for line in source.split("\n"):
        depth = len(line) - len(line.lstrip())
        if inside is not None and line.strip() and depth < inside:
            inside = None
        if re.fullmatch(rf"\s*{_NAME}\(\);", line):
            # One within another: the outer one's coordinates serve.
            lines += [" " * depth + _FRESH] if inside is None else []
            inside = depth if inside is None else inside
            continue
        if inside is not None:
            for known, fresh in _COORDINATES.items():
                line = line.replace(known, fresh)
        lines.append(line)
    return "\n".join(lines)
