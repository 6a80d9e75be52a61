"""Outputs are written beside and renamed: a failure leaves the old file, and no litter."""

from __future__ import annotations

from pathlib import Path

import pytest

from tvm_sparse.errors import OutputError
from tvm_sparse.files import check_writable, replacing


def test_a_new_and_an_old_file_are_written(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with replacing(tmp_path / "net.so") as path:
            assert path.name == "net.so" and path.parent != tmp_path
            path.write_text(text)
        assert (tmp_path / "net.so").read_text() == text
    assert [item.name for item in tmp_path.iterdir()] == ["net.so"]


@pytest.mark.parametrize(
    ("fault", "seen"), [(OSError(28, "No space left on device"), OutputError), (ValueError("x"), ValueError)]
)
def test_a_failure_leaves_the_old_file(tmp_path: Path, fault: Exception, seen: type[Exception]) -> None:
    target = tmp_path / "net.so"
    target.write_text("old")
    with pytest.raises(seen), replacing(target) as path:
        path.write_text("half")
        raise fault
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "net.so").write_text("old")
    (tmp_path / "net.so").symlink_to(tmp_path / "real" / "net.so")
    with replacing(tmp_path / "net.so") as path:
        path.write_text("new")
    assert (tmp_path / "net.so").is_symlink() and (tmp_path / "real" / "net.so").read_text() == "new"


def test_the_usual_permissions_are_kept(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with replacing(tmp_path / "net.so") as path:
        path.touch()
    assert (tmp_path / "net.so").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("name", ["missing/net.so", "file/net.so", "folder", "link-to-nowhere/net.so", "/dev/null"])
def test_an_unwritable_path_is_refused_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link-to-nowhere").symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OutputError, match="cannot write") as caught:
        check_writable(tmp_path / name)
    assert "\n" not in str(caught.value) and Path(name).name in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before
