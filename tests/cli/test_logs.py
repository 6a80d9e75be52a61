"""`tvm-sparse logs`: what it prints and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tuning.making import RECORD, record
from tvm_sparse.cli import main
from tvm_sparse.tuning.log_files import LogWriter, read_log


@pytest.fixture
def log(tmp_path: Path) -> Path:
    writer = LogWriter(tmp_path / "log")
    for number in range(12):
        writer.append(record(time_us=50.0 - number, knobs={"rows": number}))
    writer.append(record(outcome="timeout", knobs={"rows": 99}))
    writer.append(record(time_us=70.0, knobs={"rows": 3}, kind="dense", density=0.2))
    return tmp_path / "log"


def test_list(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", "list", str(log), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["records"], first["failed"], first["µs"], second["kind"]) == (13, 1, 39.0, "dense")
    assert main(["logs", "list", str(log)]) == 0
    assert "n1 64x14x14 -> 32 3x3 padding 1,1,1,1" in capsys.readouterr().out


def test_best(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", "best", str(log), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["knobs"] == {"rows": 11} and (first["sparse µs"], first["dense µs"]) == (39.0, None)
    assert (second["sparse µs"], second["dense µs"]) == (None, 70.0)
    assert main(["logs", "best", str(log)]) == 0
    assert '{"rows": 11}' in capsys.readouterr().out


def test_merge_is_idempotent_and_keeps_the_fastest_double(log: Path, tmp_path: Path) -> None:
    LogWriter(tmp_path / "other").append(record(time_us=1.0, knobs={"rows": 0}))
    for _ in range(2):
        assert main(["logs", "merge", str(log), str(tmp_path / "other"), "--into", str(tmp_path / "all")]) == 0
        records = read_log(tmp_path / "all").records
        assert len(records) == 14 and min(one.time_us or 99 for one in records) == 1.0


def test_prune(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = log / "llvm-avx512" / "records.jsonl"
    with path.open("a") as stream:
        stream.write('{"torn')
    assert main(["logs", "prune", str(log), "--keep", "2"]) == 0
    output = capsys.readouterr()
    assert f"{path}: 14 records, 3 kept" in output.out and f"warning: {path}:15: skipped" in output.err
    assert [one.time_us for one in read_log(log).records] == [39.0, 40.0, 70.0]
    assert read_log(log).problems == []


@pytest.mark.parametrize("command", ["list", "best", "prune"])
def test_no_log_is_one_line(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", command, str(tmp_path / "absent")]) == 4
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")


def test_merge_into_a_file_cannot_be_written(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["logs", "merge", str(log), "--into", str(tmp_path / "file")]) == 8
    assert RECORD.template not in capsys.readouterr().err
