"""Name the fat binaries inside a shared library as a section of it, so that NVIDIA's tools find them.

TVM stores device code within its constant data, where `cuobjdump` does not look. Loading a library does not use the
section table at all, so a table with one entry more, put at the end of the file, changes nothing else.

Layout: System V ABI, ELF-64, little endian.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from tvm_sparse.cuda.fatbin import Fatbin
from tvm_sparse.errors import CompileError

_SECTION = struct.Struct("<IIQQQQIIQQ")  # name, type, flags, address, offset, size, link, info, align, entry size
_PROGBITS, _ALLOC = 1, 2
_NAME = b".nv_fatbin\0"
_TABLE_OFFSET_AT, _TABLE_SHAPE_AT = 0x28, 0x3A
_TABLE_SHAPE = struct.Struct("<HHH")  # bytes of an entry, entries, entry that holds the names


def add_fatbin_sections(path: Path, fatbins: Sequence[Fatbin]) -> None:
    """Give each fat binary in the file a section `.nv_fatbin`.

    Raises
    ------
    CompileError
        The file is not a 64-bit little-endian ELF file.
    """
    data = bytearray(path.read_bytes())
    if data[:6] != b"\x7fELF\x02\x01":
        raise CompileError(f"{path}: the linker made no 64-bit ELF file")
    (table_at,) = struct.unpack_from("<Q", data, _TABLE_OFFSET_AT)
    entry_bytes, count, names_index = _TABLE_SHAPE.unpack_from(data, _TABLE_SHAPE_AT)
    sections = [list(_SECTION.unpack_from(data, table_at + entry_bytes * index)) for index in range(count)]

    names = sections[names_index]
    old_names = data[names[4] : names[4] + names[5]]
    names[4], names[5] = len(data), len(old_names) + len(_NAME)
    data += old_names + _NAME
    for fatbin in fatbins:
        sections.append([len(old_names), _PROGBITS, _ALLOC, 0, fatbin.offset, fatbin.size_bytes, 0, 0, 8, 0])
    data += bytes(-len(data) % 8)
    struct.pack_into("<Q", data, _TABLE_OFFSET_AT, len(data))
    _TABLE_SHAPE.pack_into(data, _TABLE_SHAPE_AT, _SECTION.size, len(sections), names_index)
    for section in sections:
        data += _SECTION.pack(*section)
    path.write_bytes(data)
