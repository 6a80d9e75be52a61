"""The loop over a program of `compute.jump_filter` as a function of CUDA whose body is PTX.

Every nonzero jumps to the multiply-adds of its tap and output channel, which name the registers of their sums and
inputs; from there the next one jumps on, so that a nonzero costs one jump. Where the next one goes is looked up while
the multiply-adds run, since its code came with the word of the one before.

ptxas gives every jump a table of its own in constant memory. Where these are too many for its cache, pieces of code end
with a branch to one of a few jumps, whose target is looked up after the branch.
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


def jump_function(window: Window, vector: int, jumps: int = 0) -> tuple[str, str]:
    """Name and text of a function `(float* part, const float* first, const int* segment, const int* row)`.

    It runs the program that begins in `segment` where `row` says (see JumpFilter). part[v * pixels + f] are the sums of
    `vector` output channels and the pixels of a thread; `first` is where a window of offset 0 begins. All but the sums
    are in shared memory. There are so many `jumps`; 0 stands for one behind every piece of code. The text is valid for
    CUDA C++ of nvcc and NVRTC.
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
        *(["bra.uni jump0;"] if jumps else _NEXT),
    ]

    def jump(piece: int) -> list[str]:
        """What stands behind a piece of code."""
        if jumps and piece >= jumps:
            return [f"bra.uni jump{piece % jumps};"]
        return [f"jump{piece}:", *_NEXT] if jumps else [*_NEXT]

    for piece, label in enumerate(labels):
        tap, v = divmod(piece, vector)
        lines.append(f"{label}:")
        for pixel, load in enumerate(window.places[tap]):
            total = f"%{v * pixels + pixel}"
            lines.append(f"fma.rn.f32 {total}, word, {xs[load]}, {total};")
        lines += jump(piece)
    lines += ["load:", f"add.u32 start, {first}, word;"]
    lines += [f"ld.shared.f32 {x}, [start+{at * ELEMENT}];" for x, at in zip(xs, window.loads, strict=True)]
    lines += [*jump(len(labels)), "end:"]

    code = "\n    ".join(lines)
    results = ", ".join(f'"+f"(part[{total}])' for total in sums)
    given = ", ".join(f'"r"((unsigned)__cvta_generic_to_shared({name}))' for name in ("first", "program"))
    begin = f"const int* program = segment + *row / {ROW_START} * {WORDS};"
    body = f'{begin}\n  asm volatile(R"({{\n    {code}\n  }})"\n  : {results} : {given} : "memory");'
    parameters = "(float* part, const float* first, const int* segment, const int* row)"
    name = PREFIX + hashlib.sha256(f"{parameters}{body}".encode()).hexdigest()[:16]
    return name, f"\n__forceinline__ __device__ void {name}{parameters} {{\n  {body}\n}}\n"
