"""Logs on disk: append-only files of records, one folder per device, that outlive kills and full disks.

A record is one line, written by one call to a file opened for appending, under a lock, and flushed to the disk before
the call returns. Whatever tears a line, everything before it counts, and the next writer starts a line of its own.
"""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from tvm_sparse.errors import InputError, OutputError
from tvm_sparse.tuning.records import Record, from_line, to_line

SUFFIX = ".jsonl"
FILE_NAME = f"records{SUFFIX}"


@dataclass(frozen=True)
class Log:
    """Records in the order they were written, and a line for everything that could not be read."""

    records: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def log_files(place: str | Path) -> list[Path]:
    """The files of a log: every .jsonl below a folder, or the one file that is named.

    Raises
    ------
    InputError
        There is no such folder or file.
    """
    place = Path(place)
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise InputError(f"{place}: no such log; `tvm-sparse tune --log` writes one")
    return sorted(path for path in place.rglob(f"*{SUFFIX}") if path.is_file())


def shipped_logs() -> Path:
    """The folder of the logs that come with this package."""
    return Path(str(files("tvm_sparse.tuning_logs")))


def read_log(*places: str | Path) -> Log:
    """Every record of some logs; what cannot be read is skipped and named in `problems`.

    Raises
    ------
    InputError
        A place does not exist or cannot be opened.
    """
    log = Log()
    for path in [path for place in places for path in log_files(place)]:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot read: {error.strerror}") from error
        for number, line in enumerate(data.split(b"\n"), 1):
            if not line.strip():
                continue
            try:
                log.records.append(from_line(line.decode("utf-8")))
            except (InputError, UnicodeDecodeError) as error:
                reason = error if isinstance(error, InputError) else "not text"
                log.problems.append(f"{path}:{number}: skipped: {reason}")
    return log


def make_log(folder: str | Path) -> None:
    """Make sure that a folder can take a log, before the long work.

    Raises
    ------
    OutputError
        It cannot be made or written to.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot write a log here: {error.strerror or error}; choose another folder"
        ) from error


class LogWriter:
    """Appends records to DIR/<device>/records.jsonl; several writers, threads or processes, may share the files.

    Raises
    ------
    OutputError
        A file cannot be written, the disk is full included: what stood there before is whole, the record is not there.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, device: str) -> Path:
        return self.folder / device / FILE_NAME

    def append(self, record: Record) -> None:
        """Return once the record is on the disk."""
        path = self.path(record.site.device)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path) as descriptor:
                _append_line(descriptor, to_line(record))
        except OSError as error:
            raise OutputError(
                f"{path}: cannot write: {error.strerror or error}; make room or choose another log"
            ) from error


def rewrite(path: Path, change: Callable[[list[Record]], Sequence[Record]]) -> Log:
    """Replace a file's records by what `change` makes of them, while no writer can add one; damaged lines go.

    Returns
    -------
    Log
        The records now in the file, and what could not be read of the old ones.

    Raises
    ------
    OutputError
        The file cannot be written; it is then as it was.
    """
    try:
        with _locked(path):
            before = read_log(path)
            kept = list(change(before.records))
            if not kept:
                path.unlink()
            else:
                beside = path.with_name(f".{path.name}.new")
                with open(beside, "w", encoding="utf-8") as stream:
                    stream.writelines(f"{to_line(record)}\n" for record in kept)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(beside, path)
            _sync_folder(path.parent)
    except OSError as error:
        raise OutputError(f"{path}: cannot write: {error.strerror or error}; it is as it was") from error
    return Log(kept, before.problems)


def append_all(folder: str | Path, records: Iterable[Record]) -> None:
    """Append many records; see LogWriter."""
    writer = LogWriter(folder)
    for record in records:
        writer.append(record)


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """An open, exclusively locked descriptor of the file that has this path now; a fresh one is made."""
    while True:
        fresh = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _stands_at(descriptor, path):
                if fresh:
                    _sync_folder(path.parent)
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _stands_at(descriptor: int, path: Path) -> bool:
    """Whether an open file still has its path: rewrite() gives that to another one."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(descriptor)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _append_line(descriptor: int, line: str) -> None:
    size = os.fstat(descriptor).st_size
    torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
    data = f"{chr(10) if torn else ''}{line}\n".encode()
    try:
        written = os.write(descriptor, data)
        if written != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def _sync_folder(folder: Path) -> None:
    """Make a new name in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
