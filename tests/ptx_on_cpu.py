"""PTX inside of CUDA functions as C++, on top of device.h: the few instructions that this package writes."""

from __future__ import annotations

import re

_TYPES = {"f32": "float", "b32": "unsigned", "b16": "ushort"}
_ASM = re.compile(
    r"asm volatile\(R\"\(\{\n(?P<code>.*?)\n *\}\)\"\s*: (?P<out>.*?) : (?P<given>.*?) : \"memory\"\);", re.DOTALL
)
_OPERAND = re.compile(r"%(\d+)")
#: Instructions and what they are in C++, of what their groups match.
_RULES = [
    (r"\.reg \.(\w+) ([\w, ]+)", lambda kind, names: f"{_TYPES[kind]} {names}"),
    (r"ld\.shared\.(\w+) (\w+), \[(.+)\]", lambda kind, x, at: f"{x} = load_shared<{_TYPES[kind]}>({at})"),
    (r"ld\.global(?:\.nc)?\.(\w+) (\w+), \[(.+)\]", lambda kind, x, at: f"{x} = load_global<{_TYPES[kind]}>({at})"),
    (r"fma\.rn\.f32 (.+), (\w+), 0f(\w{8}), \1", lambda to, x, bits: f"{to} = fmaf({x}, float_of(0x{bits}u), {to})"),
    (
        r"fma\.rn\.f16x2 (.+), (\w+), (\w+), \1",
        lambda to, x, y: f"{to} = bits_of(__hfma2(pair_of({x}), pair_of({y}), pair_of({to})))",
    ),
    (r"cvt\.f32\.f16 (\w+), (\w+)", lambda to, h: f"{to} = half_bits::to({h})"),
    (r"mov\.b32 \{(\w+), (\w+)\}, (\w+)", lambda low, high, both: f"{low} = {both}, {high} = {both} >> 16"),
    (r"mov\.b32 (\w+), \{(\w+), (\w+)\}", lambda to, low, high: f"{to} = float_of({low} | (unsigned){high} << 16)"),
    (
        r"fma\.rn\.f32 (.+), (\w+), (\w+), \1",
        lambda to, bits, x: f"{to} = fmaf({x}, float_of({bits}), {to})",
    ),
    (
        r"ld\.shared\.v2\.b32 \{(\w+), (\w+)\}, \[(.+)\]",
        lambda x, y, at: (
            f"assert({at} % 8 == 0), {x} = load_shared<unsigned>({at}), {y} = load_shared<unsigned>({at} + 4)"
        ),
    ),
    (r"add\.u32 (\w+), (\w+), (\w+)", lambda to, x, y: f"{to} = {x} + {y}"),
    (r"mov\.b32 (\w+), (\w+)", lambda to, x: f"{to} = {x}"),
    (
        r"(\w+): \.branchtargets ([\w, ]+)",
        lambda name, labels: f"static void* {name}[] = {{{', '.join('&&' + each for each in labels.split(', '))}}}",
    ),
    (
        r"brx\.idx\.uni (\w+), (\w+)",
        lambda at, targets: f"assert({at} < sizeof {targets} / sizeof *{targets}); goto *{targets}[{at}]",
    ),
    (r"bra\.uni (\w+)", lambda label: f"goto {label}"),
    (r"mov\.b(?:16|32) (\w+), (0|0x\w{8})", lambda to, number: f"{to} = {number}"),
]


def to_cpp(function: str) -> str:
    """A CUDA function with its `asm` statements as C++; an instruction that is not known is an AssertionError."""
    return _ASM.sub(_statement, function)


def _statement(found: re.Match[str]) -> str:
    operands = re.findall(r'"\+?[rfl]"\((.*?)\)(?=, "|$)', f"{found['out']}, {found['given']}")
    # PTX allows a register to be read and written by its name only.
    given = len(re.findall(r'"[rfl]"\(', found["given"]))
    body = [f"auto given{n} = {operand};" for n, operand in enumerate(operands[len(operands) - given :])]
    names = [*operands[: len(operands) - given], *(f"given{n}" for n in range(given))]

    def named(operand: re.Match[str]) -> str:
        return names[int(operand[1])]

    body += [f"{_instruction(_OPERAND.sub(named, line.strip()))};" for line in found["code"].split("\n")]
    return "{\n" + "\n".join(body) + "\n}"


def _instruction(line: str) -> str:
    if re.fullmatch(r"\w+:", line):
        return line
    for pattern, translate in _RULES:
        if match := re.fullmatch(f"{pattern};", line):
            return translate(*match.groups())
    raise AssertionError(f"no translation of {line!r}")
