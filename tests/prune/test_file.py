"""Pruning files: what is read, how the result is put in place, and what stays after a failure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tvm_sparse.prune.file as file_module
from tvm_sparse.errors import InputError, ModelError, OutputError
from tvm_sparse.prune import prune_file


@pytest.fixture
def model() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((16, 8, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 8, 6, 6))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 16, 4, 4))],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.fixture
def source(model: onnx.ModelProto, tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    return path


def sparsity(path: Path) -> float:
    return float((numpy_helper.to_array(onnx.load(path).graph.initializer[0]) == 0).mean())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_into_another(source: Path) -> None:
    kept = source.read_bytes()
    report = prune_file(source, source.with_name("pruned.onnx"), 0.75, "vector:4", "global", ())
    assert report.after == sparsity(source.with_name("pruned.onnx")) == 0.75
    assert source.read_bytes() == kept
    assert names(source.parent) == ["net.onnx", "pruned.onnx"]


def test_onto_itself_and_by_str(source: Path) -> None:
    prune_file(str(source), str(source), 0.5)
    assert sparsity(source) == 0.5 and names(source.parent) == ["net.onnx"]


def test_any_suffix_is_protobuf(source: Path) -> None:
    odd = source.rename(source.with_name("net.json"))
    prune_file(odd, odd.with_name("out.txt"), 0.5)
    assert sparsity_of_bytes(odd.with_name("out.txt").read_bytes()) == 0.5


def sparsity_of_bytes(data: bytes) -> float:
    return float((numpy_helper.to_array(onnx.load_from_string(data).graph.initializer[0]) == 0).mean())


def test_external_data_in_one_file_out(model: onnx.ModelProto, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "net.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert len(path.read_bytes()) < 1000
    kept = (tmp_path / "in" / "weights.bin").read_bytes()
    prune_file(path, tmp_path / "out.onnx", 0.5)
    assert sparsity(tmp_path / "out.onnx") == 0.5 and names(tmp_path) == ["in", "out.onnx"]
    assert (tmp_path / "in" / "weights.bin").read_bytes() == kept
    (tmp_path / "in" / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"in/net\.onnx: cannot read its external data"):
        prune_file(path, tmp_path / "out.onnx", 0.5)


def test_too_large_for_one_file(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit lowered: the weights go beside the file, and no file that is there already is overwritten."""
    monkeypatch.setattr(file_module, "MAX_MESSAGE_BYTES", 1000)
    taken = source.with_name("out.onnx.data")
    taken.write_bytes(b"somebody else's")
    prune_file(source, source.with_name("out.onnx"), 0.5)
    assert names(source.parent) == ["net.onnx", "out.onnx", "out.onnx.data", "out.onnx.data.2"]
    assert sparsity(source.with_name("out.onnx")) == 0.5
    assert source.with_name("out.onnx").stat().st_size < 1000
    assert taken.read_bytes() == b"somebody else's"


def test_unreadable_files_are_refused_by_name(source: Path, tmp_path: Path) -> None:
    data = source.read_bytes()
    bad = {
        "missing.onnx": None,
        "empty.onnx": b"",
        "text.onnx": b"this is not a network\n" * 10,
        "zip.onnx": b"PK\x03\x04" + bytes(200),
        "half.onnx": data[: len(data) // 2],
        "cut.onnx": data[:-1],
    }
    for name, content in bad.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=name) as caught:
            prune_file(tmp_path / name, tmp_path / "out.onnx", 0.5)
        assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="cannot read"):
        prune_file(tmp_path, tmp_path / "out.onnx", 0.5)
    assert not (tmp_path / "out.onnx").exists()


def test_invalid_models_are_refused_and_the_old_file_stays(model: onnx.ModelProto, tmp_path: Path) -> None:
    model.graph.node[0].input[0] = "nowhere"
    onnx.save(model, tmp_path / "bad.onnx")
    (tmp_path / "out.onnx").write_bytes(b"old")
    with pytest.raises(ModelError, match=r"bad\.onnx: not valid ONNX.*conv") as caught:
        prune_file(tmp_path / "bad.onnx", tmp_path / "out.onnx", 0.5)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "out.onnx").read_bytes() == b"old" and names(tmp_path) == ["bad.onnx", "out.onnx"]


def test_errors_name_the_file(source: Path, model: onnx.ModelProto) -> None:
    with pytest.raises(InputError, match=r"net\.onnx: skip pattern 'stem'"):
        prune_file(source, source, 0.5, skip=["stem"])
    weight = np.full((16, 8, 3, 3), np.nan, np.float32)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    onnx.save(model, source)
    with pytest.raises(ModelError, match=r"net\.onnx: filter 'w' of convolution 'conv'"):
        prune_file(source, source, 0.5)


def test_unwritable_outputs(source: Path, tmp_path: Path) -> None:
    for destination in (tmp_path / "no" / "out.onnx", source / "out.onnx", tmp_path):
        with pytest.raises(OutputError, match="cannot write"):
            prune_file(source, destination, 0.5)
    assert names(tmp_path) == ["net.onnx"]


@pytest.mark.parametrize("large", [False, True])
def test_a_full_disk_leaves_the_old_file(source: Path, monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    if large:
        monkeypatch.setattr(file_module, "MAX_MESSAGE_BYTES", 1000)
    monkeypatch.setattr(onnx, "save", fail)
    kept = source.read_bytes()
    with pytest.raises(OutputError, match="No space left"):
        prune_file(source, source, 0.5)
    assert source.read_bytes() == kept and names(source.parent) == ["net.onnx"]


def test_arguments_are_checked_before_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sparsity"):
        prune_file(tmp_path / "missing.onnx", tmp_path / "out.onnx", 2)
