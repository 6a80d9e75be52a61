"""The text of a nonzero function: an instruction for every nonzero, and no more than is needed around them."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tvm_sparse.schedules.pattern_ptx import Loads, nonzero_function

WEIGHT = np.array([[0, 0.5, 0, -2], [0, 0, 0, 0], [1, 1 / 3, 0, 0]])
OFFSETS = [0, 7, 50, 300_000]


def instructions(text: str) -> list[str]:
    """Those between the braces of the assembly."""
    found = re.search(r'R"\(\{\n(.*?)\n *\}\)"', text, re.DOTALL)
    assert found
    return [line.strip() for line in found[1].split("\n")]


def test_what_is_zero_takes_no_instruction() -> None:
    _, text = nonzero_function(Loads("float32", "shared"), WEIGHT, OFFSETS)
    assert instructions(text) == [
        ".reg .f32 x;",
        "ld.shared.f32 x, [%2+0];",
        "fma.rn.f32 %1, x, 0f3f800000, %1;",
        "ld.shared.f32 x, [%2+28];",
        "fma.rn.f32 %0, x, 0f3f000000, %0;",
        "fma.rn.f32 %1, x, 0f3eaaaaab, %1;",
        "ld.shared.f32 x, [%2+1200000];",
        "fma.rn.f32 %0, x, 0fc0000000, %0;",
    ]
    assert '"+f"(part[0]), "+f"(part[2]) : "r"((unsigned)__cvta_generic_to_shared(x))' in text


@pytest.mark.parametrize(
    ("loads", "size", "a_load", "a_nonzero"),
    [
        (Loads("float32", "global"), 4, 1, 1),
        (Loads("float16", "shared"), 2, 2, 1),
        (Loads("bfloat16", "global"), 2, 2, 1),
        (Loads("float16", "global", paired=True), 2, 4, 2),
        (Loads("bfloat16", "shared", paired=True), 2, 4, 2),
        (Loads("float16", "shared", paired=True, sums="float16"), 2, 1, 2),
    ],
)
def test_a_column_is_loaded_once(loads, size, a_load, a_nonzero) -> None:
    _, text = nonzero_function(loads, WEIGHT, OFFSETS)
    code = instructions(text)
    memory = "ld.shared." if loads.scope == "shared" else "ld.global.nc."
    loaded = [line for line in code if line.startswith(memory)]
    assert [int(re.findall(r"\+(\d+)\]", line)[0]) for line in loaded] == [0, 7 * size, 300_000 * size]
    assert len(code) == 3 * a_load + np.count_nonzero(WEIGHT) * a_nonzero + len(loads.registers())
    stored = {int(place) for place in re.findall(r"part\[(\d+)\]", text)}
    assert stored == ({0, 1, 4, 5} if loads.paired else {0, 2})


def test_equal_functions_have_one_name() -> None:
    loads = Loads("float32", "shared")
    name, text = nonzero_function(loads, WEIGHT, OFFSETS)
    assert nonzero_function(loads, WEIGHT.copy(), list(OFFSETS)) == (name, text) and f"void {name}(" in text
    others = [
        nonzero_function(loads, 2 * WEIGHT, OFFSETS),
        nonzero_function(loads, WEIGHT, [1, *OFFSETS[1:]]),
        nonzero_function(Loads("float32", "global"), WEIGHT, OFFSETS),
    ]
    assert len({name, *(other for other, _ in others)}) == 4
