"""The loop over a program of `compute.jump_filter` as a function of CUDA whose body is PTX.

Every nonzero jumps to the multiply-adds of its tap and output channel, which name the registers of their sums and
inputs; from there the next one jumps on, so that a nonzero costs one jump. Where the next one goes is looked up while
the multiply-adds run, since its code came with the word of the one before.
"""

from __future__ import annotations

import hashlib

from tvm_sparse.compute.jump_filter import ELEMENT, WORDS, Codes, Window
from tvm_sparse.compute.packed_filter import ROW_START

#: The first characters of the names of these functions.
PREFIX = "jumps_"
INSTRUCTION_BYTES = 4 * WORDS
#: Reads a word and the code behind it, moves on, and jumps by the code that was read before.
_NEXT = (
    "mov.b32 target, code;",
    "ld.shared.v2.b32 {word, code}, [place];",
    f"add.u32 place, place, {INSTRUCTION_BYTES};",
    "brx.idx.uni target, targets;",
)


def jump_function(window: Window, vector: int) -> tuple[str, str]:
    """Name and text of a function `(float* part, const float* first, const int* segment, const int* row)`.

    It runs the program that begins in `segment` where `row` says (see JumpFilter). part[v * pixels + f] are the sums of
    `vector` output channels and the pixels of a thread; `first` is where a window of offset 0 begins. All but the sums
    are in shared memory. The text is valid for CUDA C++ of nvcc and NVRTC.
    """
    pixels, codes = len(window.places[0]), Codes(len(window.places), vector)
    sums = range(vector * pixels)
    first, program = f"%{len(sums)}", f"%{len(sums) + 1}"
    labels = [f"tap{tap}_{v}" for tap in range(codes.taps) for v in range(vector)]
    xs = [f"x{load}" for load in range(len(window.loads))]
    lines = [
        ".reg .b32 word, code, target, place, start;",
        f".reg .f32 {', '.join(xs)};",
        f"targets: .branchtargets {', '.join([*labels, 'load', 'end'])};",
        f"ld.shared.v2.b32 {{word, code}}, [{program}];",
        f"add.u32 place, {program}, {INSTRUCTION_BYTES};",
        *_NEXT,
    ]
    for label, (tap, v) in zip(labels, ((tap, v) for tap in range(codes.taps) for v in range(vector)), strict=True):
        lines.append(f"{label}:")
        for pixel, load in enumerate(window.places[tap]):
            total = f"%{v * pixels + pixel}"
            lines.append(f"fma.rn.f32 {total}, word, {xs[load]}, {total};")
        lines += _NEXT
    lines += ["load:", f"add.u32 start, {first}, word;"]
    lines += [f"ld.shared.f32 {x}, [start+{at * ELEMENT}];" for x, at in zip(xs, window.loads, strict=True)]
    lines += [*_NEXT, "end:"]

    code = "\n    ".join(lines)
    results = ", ".join(f'"+f"(part[{total}])' for total in sums)
    given = ", ".join(f'"r"((unsigned)__cvta_generic_to_shared({name}))' for name in ("first", "program"))
    begin = f"const int* program = segment + *row / {ROW_START} * {WORDS};"
    body = f'{begin}\n  asm volatile(R"({{\n    {code}\n  }})"\n  : {results} : {given} : "memory");'
    parameters = "(float* part, const float* first, const int* segment, const int* row)"
    name = PREFIX + hashlib.sha256(f"{parameters}{body}".encode()).hexdigest()[:16]
    return name, f"\n__forceinline__ __device__ void {name}{parameters} {{\n  {body}\n}}\n"
