"""ONNX files that cannot be imported: each refused in one line that names the file and the node, input or tensor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.network.onnx_models import batch_norm, conv, model, one_conv, tensor, weights
from tvm_sparse.errors import InputError, ModelError, TvmSparseError
from tvm_sparse.network.importer import import_model
from tvm_sparse.network.onnx_import import import_onnx


def _bad_weight(value: float) -> np.ndarray:
    weight = weights(4, 3, 3, 3)
    weight[1, 2, 0, 1] = value
    return weight


def _negative_variance() -> onnx.ModelProto:
    norm, constants = batch_norm("c", "y", 4, variance=-1.0)
    return model([conv("first", "x", "w", "c"), norm], {"w": weights(4, 3, 3, 3), **constants})


def _custom(op: str, domain: str = "") -> onnx.ModelProto:
    made = model([helper.make_node(op, ["x"], ["y"], name="odd", domain=domain)], {})
    if domain:
        made.opset_import.append(helper.make_opsetid(domain, 1))
    return made


def _loop() -> onnx.ModelProto:
    branch = helper.make_graph([helper.make_node("Relu", ["x"], ["o"])], "b", [], [tensor("o", (1, 3, 8, 8))])
    node = helper.make_node("If", ["flag"], ["y"], name="branch", then_branch=branch, else_branch=branch)
    return model([node], {}, [tensor("x", (1, 3, 8, 8)), tensor("flag", (), TensorProto.BOOL)])


def _strings() -> onnx.ModelProto:
    return model([helper.make_node("Identity", ["x"], ["y"])], {}, [tensor("x", (1,), TensorProto.STRING)])


BAD_MODELS: dict[str, tuple[Callable[[], onnx.ModelProto], dict[str, object], type[TvmSparseError], list[str]]] = {
    "open batch": (lambda: one_conv(("n", 3, 8, 8)), {}, ModelError, ["'x'", "nx3x8x8", "0 ('n')", "--batch N"]),
    "open size": (lambda: one_conv((1, 3, "h", 8)), {"batch": 1}, ModelError, ["2 ('h')", "--shape x=1x3x224x8"]),
    "no shape": (lambda: one_conv(None), {}, ModelError, ["'x'", "--shape x="]),  # type: ignore[arg-type]
    "wrong batch": (lambda: one_conv(), {"batch": 4}, InputError, ["batch 4", "'x'", "fixed at 1"]),
    "batch zero": (lambda: one_conv(("n", 3, 8, 8)), {"batch": 0}, InputError, ["batch 0"]),
    "wrong rank": (lambda: one_conv(), {"shapes": {"x": (1, 3, 8)}}, InputError, ["1x3x8", "'x'", "1x3x8x8"]),
    "wrong size": (lambda: one_conv(), {"shapes": {"x": (1, 3, 8, 9)}}, InputError, ["1x3x8x9", "'x'"]),
    "size zero": (lambda: one_conv((1, 3, "h", 8)), {"shapes": {"x": (1, 3, 0, 8)}}, InputError, ["1x3x0x8"]),
    "wrong name": (lambda: one_conv(), {"shapes": {"z": (1, 3, 8, 8)}}, InputError, ["'z'", "the inputs are x"]),
    "torn symbol": (
        lambda: one_conv((1, 3, "s", "s")),
        {"shapes": {"x": (1, 3, 8, 9)}},
        InputError,
        ["'s'", "8 and 9"],
    ),
    "NaN filter": (lambda: one_conv(weight=_bad_weight(np.nan)), {}, ModelError, ["NaN", "'w'", "'first'"]),
    "infinite filter": (lambda: one_conv(weight=_bad_weight(np.inf)), {}, ModelError, ["infinity", "'w'", "'first'"]),
    "negative variance": (_negative_variance, {}, ModelError, ["'first'", "batch norm"]),
    "unknown operator": (lambda: _custom("Frobnicate"), {}, ModelError, ["unsupported", "Frobnicate (odd)"]),
    "other domain": (lambda: _custom("Conv", "acme"), {}, ModelError, ["unsupported", "acme.Conv (odd)"]),
    "unconverted operator": (lambda: _custom("Det"), {}, ModelError, ["unsupported", "Det (odd)"]),
    "control flow": (_loop, {}, ModelError, ["unsupported", "If (branch)"]),
    "string input": (_strings, {}, ModelError, ["'x'", "string"]),
    "wrong channels": (lambda: one_conv((1, 5, 8, 8)), {}, ModelError, ["Conv node 'first'"]),
    "kernel too large": (lambda: one_conv((1, 3, 2, 2)), {}, ModelError, ["Conv node 'first'", "1x3x2x2 and 4x3x3x3"]),
    "empty": (onnx.ModelProto, {}, ModelError, ["no graph"]),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_bad_model_is_refused_in_one_line(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make, options, kind, parts = BAD_MODELS[name]
    path = tmp_path / "net.onnx"
    path.write_bytes(make().SerializeToString())
    with pytest.raises(kind) as caught:
        import_onnx(path, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    for part in parts:
        assert part in message
    assert capfd.readouterr() == ("", "")


BAD_FILES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "truncated": (lambda path: path.write_bytes(one_conv().SerializeToString()[:-40]), ["truncated"]),
    "text": (lambda path: path.write_text("not a model\n"), ["not an ONNX file"]),
    "empty": (lambda path: path.write_bytes(b""), ["no ONNX model"]),
    "missing": (lambda path: None, ["no such file"]),
    "folder": (lambda path: path.mkdir(), ["cannot be read"]),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    write, parts = BAD_FILES[name]
    path = tmp_path / "net.onnx"
    write(path)
    with pytest.raises(ModelError) as caught:
        import_model(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in parts)


def test_external_data(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(one_conv(weight=weights(64, 3, 3, 3)), path, save_as_external_data=True, location="net.data")
    assert import_onnx(path).convolutions[0].filter_shape == (64, 3, 3, 3)
    (tmp_path / "net.data").unlink()
    with pytest.raises(ModelError, match=r"net\.onnx: its external data is missing"):
        import_onnx(path)


@pytest.mark.parametrize(("source", "part"), [("net.tflite", "net.tflite: unknown kind"), (3, "a int is no model")])
def test_other_sources_are_refused(source: object, part: str) -> None:
    with pytest.raises(ModelError, match=part):
        import_model(source)


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    whole = one_conv().SerializeToString()
    path = tmp_path / "net.onnx"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"net\.onnx: "):
            import_onnx(path)


def test_flipped_bytes_are_imported_or_refused(tmp_path: Path) -> None:
    whole = one_conv().SerializeToString()
    generator = np.random.default_rng(0)
    path = tmp_path / "net.onnx"
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        start = generator.choice([0, len(whole) - 80])  # the header and the shapes; the weights lie in between
        damaged[start + generator.integers(80)] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            import_onnx(path)
        except TvmSparseError as error:
            refused += 1
            assert str(error).startswith(f"{path}: ")
            assert "\n" not in str(error)
    assert refused > 10
