"""CUDA's fat binary container: several cubins in one block of bytes, of which the driver takes the one that fits.

Layout as the toolkit's `fatbinary --create --compress=false` writes it; tests compare the bytes where it is installed.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from tvm_sparse.cuda.archs import sm_number

_HEADER = struct.Struct("<IHHQ")  # magic, version, header bytes, payload bytes
_MAGIC = 0xBA55ED50
_PREFIX = struct.pack("<IHH", _MAGIC, 1, _HEADER.size)
_ENTRY = struct.Struct("<HHIQ8xHHI8xQ16x")  # kind, version, header bytes, payload bytes, minor, major, sm, flags
_KIND_ELF = 2
_FLAGS_64_BIT_LINUX = 0x11


@dataclass(frozen=True)
class Fatbin:
    """A fat binary found inside a file: where it starts, its size, the archs (90 for sm_90) it holds."""

    offset: int
    size_bytes: int
    sm_numbers: tuple[int, ...]


def pack_fatbin(cubins: Mapping[str, bytes]) -> bytes:
    """Put one cubin per arch ("sm_90": ELF bytes) into a container that `cuModuleLoadData` accepts."""
    payload = b""
    for arch, cubin in cubins.items():
        padded = cubin + bytes(-len(cubin) % 8)
        fields = (_KIND_ELF, 0x0101, _ENTRY.size, len(padded), 8, 1, sm_number(arch), _FLAGS_64_BIT_LINUX)
        payload += _ENTRY.pack(*fields) + padded
    return _HEADER.pack(_MAGIC, 1, _HEADER.size, len(payload)) + payload


def find_fatbins(data: bytes) -> list[Fatbin]:
    """Every well-formed fat binary in `data`, in order of place."""
    found = []
    at = data.find(_PREFIX)
    while at >= 0:
        fatbin = _parse_at(data, at)
        if fatbin is not None:
            found.append(fatbin)
        at = data.find(_PREFIX, at + (fatbin.size_bytes if fatbin else len(_PREFIX)))
    return found


def _parse_at(data: bytes, start: int) -> Fatbin | None:
    if start + _HEADER.size > len(data):
        return None
    payload_bytes = _HEADER.unpack_from(data, start)[3]
    at, end = start + _HEADER.size, start + _HEADER.size + payload_bytes
    if end > len(data):
        return None
    sms = []
    while at < end:
        if at + _ENTRY.size > end:
            return None
        kind, _, header_bytes, entry_bytes, _, _, sm, _ = _ENTRY.unpack_from(data, at)
        if header_bytes < _ENTRY.size:
            return None
        if kind == _KIND_ELF:
            sms.append(sm)
        at += header_bytes + entry_bytes
    return Fatbin(start, end - start, tuple(sorted(set(sms)))) if at == end else None
