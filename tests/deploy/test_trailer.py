"""The end of a library file: whatever happens to the file, the answer is its metadata or an error that names it."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tvm_sparse.deploy.metadata import Metadata, TensorSpec
from tvm_sparse.deploy.trailer import append_trailer, read_metadata
from tvm_sparse.errors import LibraryError

METADATA = Metadata("m", (TensorSpec("x", (2, 3), "float32"),), (), "llvm")
REUSED_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture
def library(tmp_path):
    path = tmp_path / "net.so"
    path.write_bytes(b"\x7fELF, or so it says" * 7)
    size_bytes = append_trailer(path, METADATA)
    assert path.stat().st_size == size_bytes
    return path


def test_read_back(library):
    assert read_metadata(library) == METADATA
    assert read_metadata(str(library)) == METADATA


@REUSED_FOLDER
@given(data=st.data())
def test_any_flipped_byte_is_found(library, data):
    content = bytearray(library.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    damaged = library.with_name("damaged.so")
    damaged.write_bytes(content)
    with pytest.raises(LibraryError, match=r"damaged\.so: "):
        read_metadata(damaged)


@REUSED_FOLDER
@given(data=st.data())
def test_any_cut_is_found(library, data):
    content = library.read_bytes()
    cut = library.with_name("cut.so")
    cut.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(LibraryError, match=r"cut\.so: .*cut short"):
        read_metadata(cut)


@pytest.mark.parametrize("content", [b"", b"text", b"\x7fELF" + bytes(200), b"0" * 5000])
def test_a_foreign_file_is_refused(tmp_path, content):
    path = tmp_path / "other.so"
    path.write_bytes(content)
    with pytest.raises(LibraryError, match=r"other\.so: is no library of tvm-sparse"):
        read_metadata(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(LibraryError, match=r"nothing\.so: cannot be read: No such file"):
        read_metadata(tmp_path / "nothing.so")
    with pytest.raises(LibraryError, match="cannot be read: Is a directory"):
        read_metadata(tmp_path)


def test_another_format_is_named(library):
    content = bytearray(library.read_bytes())
    content[-64] = 9
    library.write_bytes(content)
    with pytest.raises(LibraryError, match="has format 9"):
        read_metadata(library)
