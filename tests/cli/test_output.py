"""Printing: plain and whole when piped, valid JSON, progress on stderr."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tvm_sparse.cli import output


@dataclass(frozen=True)
class Layer:
    name: str
    shape: tuple[int, ...]
    sparsity: float
    eligible: bool
    reason: str | None


@dataclass(frozen=True)
class Report:
    layers: list[Layer]
    total_bytes: int
    by_name: dict[str, float]


LAYERS = [
    Layer("a/very/long/name/" * 10 + "[conv]", (64, 3, 7, 7), 0.9, True, "a long reason " * 20),
    Layer("b", (1, 1), 0.0, False, None),
]


def test_a_piped_table_is_whole_and_plain(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_records(LAYERS)
    text = capsys.readouterr().out
    assert len(text.splitlines()) == 1 + len(LAYERS)
    assert LAYERS[0].name in text and (LAYERS[0].reason or "").strip() in text and "64×3×7×7" in text
    assert text.replace("×", "").replace("–", "").isascii() and "…" not in text and "\x1b" not in text


def test_a_terminal_gets_a_drawn_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    output.show_records(LAYERS)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert any("─" in line for line in lines) and max(map(len, lines)) <= 60


def test_no_records(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_records([])
    assert capsys.readouterr().out == "none\n"


def test_a_report_is_its_tables_and_then_its_values(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_report(Report([LAYERS[1]], 12345, {"y": 0.5}))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "shape", "sparsity", "eligible", "reason"]
    assert lines[1].split() == ["b", "1×1", "0", "no", "–"]
    assert lines[2:] == ["total bytes: 12,345", "by name:", "  y: 0.5"]


def test_json_is_valid_for_what_json_has_no_word_for() -> None:
    value = {
        "layers": LAYERS[1:],
        "nan": float("nan"),
        "numpy": np.float32(0.5),
        "array": np.arange(2),
        "path": Path("x"),
    }
    assert json.loads(output.to_json(value)) == {
        "layers": [{"name": "b", "shape": [1, 1], "sparsity": 0.0, "eligible": False, "reason": None}],
        "nan": None,
        "numpy": 0.5,
        "array": [0, 1],
        "path": "x",
    }


def test_json_goes_where_it_is_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert output.write_json([1], None) is False
    assert output.write_json([1], tmp_path / "x.json") is False
    assert capsys.readouterr().out == ""
    assert output.write_json([1], Path("-")) is True
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "x.json").read_text()) == [1]


def test_piped_progress_is_a_line_a_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with output.progress() as report:
        for stage, fraction in [("import", 0.0), ("import", 0.1), ("build [x]", 0.5)]:
            report(stage, fraction)
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == "import …\nbuild [x] …\n"


def test_progress_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with output.progress() as report:
        report("build [x]", 1.0)
    captured = capsys.readouterr()
    assert captured.out == "" and "build [x]" in captured.err and "100%" in captured.err


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1,000 bytes (1.0 kB)"), (25_600_000, "25,600,000 bytes (25.6 MB)")],
)
def test_sizes(count: int, text: str) -> None:
    assert output.size(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "yes"),
        (12345, "12,345"),
        (0.90123, "0.9012"),
        (1.5e6, "1,500,000"),
        (float("nan"), "nan"),
        (None, "–"),
        ((1, 3, 8, 8), "1×3×8×8"),
        (["a", "b"], "a, b"),
        ((), "none"),
    ],
)
def test_cells(value: object, text: str) -> None:
    assert output.cell(value) == text
