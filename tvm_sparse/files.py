"""Writing results so that a failure leaves what stood there before: write beside, then rename."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tvm_sparse.errors import OutputError


def check_writable(path: str | Path) -> None:
    """Refuse an output path that cannot be written, before the long work and without touching what stands there.

    Raises
    ------
    OutputError
        The folder is missing or not writable, or `path` is something other than a regular file.
    """
    path = Path(path)
    try:
        target = path.resolve()
        if target.exists() and not target.is_file():
            raise OutputError(f"{path}: cannot write: it is not a regular file; name a file")
        tempfile.TemporaryFile(dir=target.parent).close()
    except OSError as error:
        raise _output_error(path, error) from error


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a path of the same name in a fresh folder beside `path`; what the body writes there takes its place.

    The rename happens when the body ends without an exception; otherwise `path` is left as it was.

    Raises
    ------
    OutputError
        `path` cannot be written, or the body met an :class:`OSError`, such as a full disk.
    """
    path = Path(path)
    check_writable(path)
    target = path.resolve()
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
            written = Path(folder) / target.name
            yield written
            os.replace(written, target)
    except OSError as error:
        raise _output_error(path, error) from error


def _output_error(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path}: cannot write: {error.strerror or error}; choose another path or make room")
