"""A record survives its line of JSON; a damaged line is refused, whatever the damage."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tuning.making import RECORD, record
from tvm_sparse.errors import InputError
from tvm_sparse.tuning.records import OUTCOMES, Rows, class_density, density_class, from_line, to_line
from tvm_sparse.workload import ConvWorkload, Epilogue


@pytest.mark.parametrize(
    "changes",
    [
        {},
        *({"outcome": outcome, "message": "nvcc: 50% über"} for outcome in OUTCOMES[1:]),
        {"workload": ConvWorkload(2, 4, 9, 7, 6, 5, 3, (2, 1), (1, 0, 2, 3), (1, 2), 2, "float16")},
        {"workload": ConvWorkload(1, 4, 9, 7, 6, 1, 1, epilogue=Epilogue(False, True, "clip", (-0.5, 1.5)))},
        {"knobs": {"format": "column_vector:8", "warps": 4}, "kind": "dense", "error": None},
    ],
)
def test_round_trip(changes: dict) -> None:
    original = record(**changes)
    line = to_line(original)
    assert "\n" not in line and from_line(line) == original


def test_a_person_can_read_it() -> None:
    values = json.loads(to_line(RECORD))
    assert values["device"] == "llvm-avx512" and values["workload"]["padding"] == [1, 1, 1, 1]
    assert values["knobs"] == {"rows": 2, "format": "csr"} and values["time_us"] == 40.0


@given(st.integers(0, len(to_line(RECORD)) - 1))
def test_a_torn_line_is_refused(length: int) -> None:
    with pytest.raises(InputError):
        from_line(to_line(RECORD)[:length])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", 2),
        ("outcome", "splendid"),
        ("kind", 3),
        ("density", 1.5),
        ("density", None),
        ("time_us", None),
        ("time_us", -1.0),
        ("time_us", "fast"),
        ("knobs", [1]),
        ("knobs", {"rows": 1.5}),
        ("knobs", {"rows": True}),
        ("workload", {}),
        ("rows", None),
        ("threads", "two"),
        ("unheard", 1),
    ],
)
def test_a_wrong_value_is_refused(field: str, value: object) -> None:
    values = {**json.loads(to_line(RECORD)), field: value}
    with pytest.raises(InputError):
        from_line(json.dumps(values))


@given(st.text(max_size=60))
def test_any_text_is_refused_or_read(text: str) -> None:
    with pytest.raises(InputError):
        from_line(text)


def test_a_workload_of_the_wrong_type_is_refused() -> None:
    values = json.loads(to_line(RECORD))
    values["workload"]["c"] = 64.0
    with pytest.raises(InputError):
        from_line(json.dumps(values))


def test_density_classes_hold_the_usual_densities_in_their_middle() -> None:
    for density in (0.05, 0.1, 0.2, 0.4):
        assert math.isclose(class_density(density_class(density)), density)
        assert density_class(density * 1.05) == density_class(density) == density_class(density / 1.05)
    assert density_class(0.1) != density_class(0.13)
    assert density_class(0.0) < density_class(0.001) and class_density(density_class(1.0)) <= 1.0


def test_row_statistics() -> None:
    weight = np.zeros((3, 2, 2, 1), np.float32)
    weight[0] = 1
    weight[1, 0, 0, 0] = 2
    rows = Rows.of(weight)
    assert (rows.median, rows.longest, rows.empty) == (1.0, 4, 1)
    moved = np.zeros_like(weight)
    moved[0] = 1
    moved[1, 1, 0, 0] = 2
    assert rows.pattern == Rows.of(weight * 3).pattern != Rows.of(moved).pattern
