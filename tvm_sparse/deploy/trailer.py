"""The end of a library file: metadata as JSON, then a footer with lengths and a checksum.

    shared library | metadata JSON | footer: version, lengths, sha256 of all before it, magic

The dynamic linker does not look behind the sections of a shared library, so the file stays loadable as it is.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import BinaryIO

from tvm_sparse.deploy.metadata import Metadata
from tvm_sparse.errors import LibraryError

_MAGIC = b"TVMSPRS\0"
_VERSION = 1
_LENGTHS = struct.Struct("<QQQ")  # version, bytes of the shared library, bytes of the metadata
_FOOTER_BYTES = _LENGTHS.size + hashlib.sha256().digest_size + len(_MAGIC)
_CHUNK_BYTES = 1 << 20


def append_trailer(path: Path, metadata: Metadata) -> int:
    """Add metadata and footer to a shared library; the size of the file afterwards, in bytes."""
    text = metadata.to_json().encode()
    with path.open("r+b") as file:
        library_bytes = file.seek(0, 2)
        file.write(text + _LENGTHS.pack(_VERSION, library_bytes, len(text)))
        end = file.tell()
        digest = _digest(file, end)
        file.seek(end)
        file.write(digest + _MAGIC)
        return file.tell()


def read_metadata(path: str | Path) -> Metadata:
    """Read and check a library without loading its code.

    Raises
    ------
    LibraryError
        The file is missing, cut short, damaged, or not a library of this package; the message names it.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _read(file, path)
    except OSError as error:
        raise LibraryError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read(file: BinaryIO, path: Path) -> Metadata:
    size = file.seek(0, 2)
    file.seek(max(0, size - _FOOTER_BYTES))
    footer = file.read(_FOOTER_BYTES)
    if len(footer) < _FOOTER_BYTES or not footer.endswith(_MAGIC):
        raise LibraryError(f"{path}: is no library of tvm-sparse, or was cut short: compile or copy it again")
    version, library_bytes, metadata_bytes = _LENGTHS.unpack_from(footer)
    if version != _VERSION:
        raise LibraryError(f"{path}: has format {version}, this release reads {_VERSION}: use the release that made it")
    digest = footer[_LENGTHS.size : -len(_MAGIC)]
    whole = library_bytes + metadata_bytes + _FOOTER_BYTES == size
    if not whole or _digest(file, size - _FOOTER_BYTES + _LENGTHS.size) != digest:
        raise LibraryError(f"{path}: is damaged (its checksum differs): compile or copy it again")
    file.seek(library_bytes)
    try:
        return Metadata.from_json(file.read(metadata_bytes))
    except LibraryError as error:
        raise LibraryError(f"{path}: {error}") from error


def _digest(file: BinaryIO, count_bytes: int) -> bytes:
    """sha256 of the first bytes of a file."""
    file.seek(0)
    digest = hashlib.sha256()
    while count_bytes:
        chunk = file.read(min(_CHUNK_BYTES, count_bytes))
        if not chunk:
            break
        digest.update(chunk)
        count_bytes -= len(chunk)
    return digest.digest()
