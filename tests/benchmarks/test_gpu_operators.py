"""The table of dense operators: what Relax and torch say of an operator agrees, on a CPU."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.gpu_operators import cases
from benchmarks.gpu_operators.build import build
from benchmarks.gpu_operators.measure import Row, measure
from benchmarks.gpu_operators.tables import finite, operators
from benchmarks.markdown import NOTHING
from benchmarks.records import record
from tests.benchmarks.gpu_layers.stand_ins import FakeTimer

SMALL = (
    cases.conv("conv", 4, 9, 6, 3, 2, 1, 2),
    cases.depthwise("depthwise", 4, 9, 1),
    cases.max_pool("max_pool", 3, 9, 3, 2, 1),
    cases.global_average("average", 5, 7),
    cases.linear("linear", 24, 10),
    cases.softmax("softmax", 10),
    cases.response_norm("response_norm", 6, 5),
    cases.concat("concat", 4, 5),
    cases.scale_relu("scale_relu", 4, 5),
)


@pytest.mark.parametrize("operator", SMALL, ids=lambda operator: operator.name)
def test_relax_and_torch_agree(operator: cases.Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr("benchmarks.gpu_operators.build.OPERATORS", SMALL)
    row = Row(operator.name, 2)
    row.kernels, row.note = build(operator.name, 2, "llvm", str(tmp_path / "operator.so"))
    measure(row, operator, str(tmp_path / "operator.so"), FakeTimer(), "cpu", True)
    assert row.error < 1e-6 and row.ours_us > 0 and row.peer_us > 0 and row.bound_us > 0
    assert operator.name in str(row)


def test_a_record_becomes_a_table(tmp_path: Path) -> None:
    path = tmp_path / "operators.json"
    assert operators(path) == NOTHING
    timed = Row(
        "linear", 1, ours_us=4.0, cold_us=6.0, peer_us=8.0, peer_cold_us=9.0, bound_us=2.0, error=1e-7, kernels=1
    )
    rows = [finite(asdict(row)) for row in (timed, Row("pool", 32, note="FAILED"))]
    record(path, rows, conditions={"device": "a GPU", "torch": "2.0", "date": "today"})
    text = operators(path)
    assert "| linear | 1 | 4.00 us (cold 6.00 us) | 8.00 us (cold 9.00 us) | 2.00x | 50% | 1 | 1e-07 |" in text
    assert "| pool | 32 |  |  |  |  | 0 | FAILED |" in text


def test_names_are_distinct() -> None:
    names = [operator.name for operator in cases.OPERATORS]
    assert len(set(names)) == len(names)
