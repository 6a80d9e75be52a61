"""What was appended is there, whatever happens to the last line, between writers, or to the disk."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tuning.making import RECORD, record
from tvm_sparse.errors import InputError, OutputError
from tvm_sparse.tuning import log_files
from tvm_sparse.tuning.log_files import LogWriter, make_log, read_log, rewrite
from tvm_sparse.tuning.records import to_line

LINE = f"{to_line(RECORD)}\n".encode()


def test_append_and_read(tmp_path: Path) -> None:
    records = [record(knobs={"rows": rows}) for rows in range(3)]
    for one in records:
        LogWriter(tmp_path).append(one)
    log = read_log(tmp_path)
    assert log.records == records and log.problems == []
    assert (tmp_path / "llvm-avx512" / "records.jsonl").read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("cut", [1, 2, 17, len(LINE) - 2, len(LINE) - 1])
def test_a_torn_last_line_costs_that_line_alone(tmp_path: Path, cut: int) -> None:
    """Power may fail at any byte of a line; cut before its end only the line break is missing."""
    writer = LogWriter(tmp_path)
    path = writer.path("llvm-avx512")
    writer.append(RECORD)
    with path.open("ab") as stream:
        stream.write(LINE[:cut])
    whole = cut == len(LINE) - 1
    torn = read_log(tmp_path)
    assert len(torn.records) == 1 + whole and len(torn.problems) == 1 - whole
    assert all(f"{path}:2" in problem for problem in torn.problems)
    writer.append(RECORD)
    mended = read_log(tmp_path)
    assert len(mended.records) == 2 + whole and len(mended.problems) == 1 - whole


def test_garbage_is_skipped_and_named(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_bytes(LINE + b"\xff\xfe\n\n{}\n[1]\n" + LINE + b"null\n")
    log = read_log(path)
    assert len(log.records) == 2
    assert [problem.split(": ")[0] for problem in log.problems] == [f"{path}:{n}" for n in (2, 4, 5, 7)]


def test_a_log_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such log"):
        read_log(tmp_path / "absent")


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = LogWriter(tmp_path)
    writer.append(RECORD)
    real = os.write
    monkeypatch.setattr(log_files.os, "write", lambda descriptor, data: real(descriptor, data[: len(data) // 2]))
    with pytest.raises(OutputError, match=os.strerror(errno.ENOSPC)):
        writer.append(RECORD)
    monkeypatch.undo()
    assert writer.path("llvm-avx512").read_bytes() == LINE


def test_a_file_size_limit_is_a_full_disk(tmp_path: Path) -> None:
    """The same with a real refusal of the system, in a process of its own."""
    code = f"""
import resource, signal, sys
from tests.tuning.making import RECORD
from tvm_sparse.tuning.log_files import LogWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({len(LINE)} * 5 // 2,) * 2)
writer = LogWriter({str(tmp_path)!r})
for _ in range(3):
    writer.append(RECORD)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 1 and "OutputError" in done.stderr
    assert read_log(tmp_path).records == [RECORD] * 2 and read_log(tmp_path).problems == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "llvm-avx512").write_text("a file")
    with pytest.raises(OutputError, match="cannot write"):
        LogWriter(tmp_path).append(RECORD)


def test_a_place_that_can_hold_no_log(tmp_path: Path) -> None:
    make_log(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below"):
        with pytest.raises(OutputError, match="cannot write a log here"):
            make_log(tmp_path / place)


def test_two_tuners_write_to_one_log(tmp_path: Path) -> None:
    code = f"""
import sys
from tests.tuning.making import record
from tvm_sparse.tuning.log_files import LogWriter
for number in range(50):
    LogWriter({str(tmp_path)!r}).append(record(knobs={{"writer": sys.argv[1], "number": number}}))
"""
    writers = [
        subprocess.Popen([sys.executable, "-c", code, name], cwd=Path(__file__).parents[2]) for name in ("one", "two")
    ]
    rewrites = 0
    while any(writer.poll() is None for writer in writers):
        if log_files_exist(tmp_path):  # compaction while they write loses nothing either
            rewrite(tmp_path / "llvm-avx512" / "records.jsonl", lambda records: records)
            rewrites += 1
    assert [writer.wait() for writer in writers] == [0, 0] and rewrites
    log = read_log(tmp_path)
    assert log.problems == []
    for name in ("one", "two"):
        assert [one.knobs["number"] for one in log.records if one.knobs["writer"] == name] == list(range(50))


def log_files_exist(folder: Path) -> bool:
    return (folder / "llvm-avx512" / "records.jsonl").exists()


def test_rewrite_drops_damage_and_failing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_bytes(LINE + b"garbage\n" + LINE)
    log = rewrite(path, lambda records: records[:1])
    assert path.read_bytes() == LINE and len(log.records) == 1 and len(log.problems) == 1

    def fail(records: list) -> list:
        raise OSError(errno.ENOSPC, "no room")

    with pytest.raises(OutputError, match="as it was"):
        rewrite(path, fail)
    assert path.read_bytes() == LINE
    rewrite(path, lambda records: [])
    assert not path.exists()
