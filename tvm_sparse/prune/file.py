"""Pruning an ONNX file into another."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_sparse.errors import InputError, ModelError, OutputError
from tvm_sparse.files import check_writable, replacing
from tvm_sparse.prune.model import MAX_MESSAGE_BYTES, Settings, message_bytes, one_line, prune_in_place
from tvm_sparse.prune.report import PruneReport

if TYPE_CHECKING:
    from onnx import ModelProto


def prune_file(
    source: str | Path,
    destination: str | Path,
    sparsity: float,
    pattern: str = "unstructured",
    scope: str = "layer",
    skip: Sequence[str] = (),
    linear: bool = False,
) -> PruneReport:
    """Prune the convolutions of an ONNX file; see `prune_model` for the arguments.

    The result is checked by onnx.checker before it takes its place; until then a file that stood at `destination` is
    untouched. `destination` may be `source`. From about 2 GiB on, the limit of an ONNX file, the weights go into a file
    beside it, ``<name>.data``, with a number in the name where that is taken.

    Raises
    ------
    InputError
        An argument out of range, or a pattern of `skip` that matches no convolution.
    ModelError
        `source` is missing, not ONNX, damaged, or has NaN or Inf weights.
    OutputError
        `destination` cannot be written.
    """
    settings = Settings.of(sparsity, pattern, scope, skip, linear)
    source, destination = Path(source), Path(destination)
    check_writable(destination)
    model = _read(source)
    try:
        report = prune_in_place(model, settings)
    except (InputError, ModelError) as error:
        raise type(error)(f"{source}: {error}") from error
    _write(model, source, destination)
    return report


def _read(path: Path) -> ModelProto:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        # The format is named because onnx would guess it from the suffix.
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except OSError as error:
        raise ModelError(f"{path}: cannot read: {error.strerror or error}") from error
    except DecodeError as error:
        raise ModelError(f"{path}: not an ONNX file, or a damaged one; export the model again") from error
    if not model.HasField("graph") or not model.opset_import:
        raise ModelError(f"{path}: not an ONNX file: it holds no graph")
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(f"{path}: cannot read its external data: {one_line(error)}") from error
    return model


def _write(model: ModelProto, source: Path, destination: Path) -> None:
    import onnx
    from google.protobuf.message import EncodeError

    with replacing(destination) as written:
        folder = written.parent.parent
        data = None
        try:
            if message_bytes(model) < MAX_MESSAGE_BYTES:
                onnx.save(model, written, format="protobuf")
            else:
                data = _unused(folder, f"{written.name}.data")
                onnx.save(model, written, format="protobuf", save_as_external_data=True, location=data)
            onnx.checker.check_model(str(written))
        except onnx.checker.ValidationError as error:
            raise ModelError(f"{source}: not valid ONNX, checked after pruning: {one_line(error)}") from error
        except (ValueError, EncodeError) as error:
            raise OutputError(f"{destination}: cannot write the pruned model: {one_line(error)}") from error
        if data is not None:
            os.replace(written.parent / data, folder / data)


def _unused(folder: Path, wanted: str) -> str:
    """A file name that `folder` does not have: overwriting another model's weights would ruin that model."""
    name, number = wanted, 1
    while (folder / name).exists():
        number += 1
        name = f"{wanted}.{number}"
    return name
