"""Any accepted model as one Relax function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tvm_sparse.errors import ModelError
from tvm_sparse.network.imported import ImportedModel

_ACCEPTED = "an .onnx file, a .pt2 file of torch.export.save, an onnx.ModelProto or a torch.export.ExportedProgram"


def import_model(
    source: Any, *, batch: int | None = None, shapes: Mapping[str, Sequence[int]] | None = None
) -> ImportedModel:
    """Import a model by its type or its file's extension: see `import_onnx` and `import_torch`.

    Raises
    ------
    ModelError
        When `source` is nothing that can be imported, or the importer refuses it.
    """
    if isinstance(source, ImportedModel):
        return source
    if model_kind(source) == ".onnx":
        from tvm_sparse.network.onnx_import import import_onnx

        return import_onnx(source, batch=batch, shapes=shapes)
    from tvm_sparse.network.torch_import import import_torch

    return import_torch(source, batch=batch, shapes=shapes)


def model_kind(source: Any) -> str:
    """ ".onnx" or ".pt2", by the type of what is given or its file's extension.

    Raises
    ------
    ModelError
        It is neither.
    """
    if isinstance(source, (str, Path)):
        kind = Path(source).suffix.lower()
        if kind not in (".onnx", ".pt2"):
            raise ModelError(f"{source}: unknown kind of model: give {_ACCEPTED}")
        return kind
    kinds = {"onnx": ".onnx", "torch": ".pt2"}
    package = type(source).__module__.split(".")[0].removesuffix("_ml_pb2")
    if package not in kinds:
        raise ModelError(f"a {type(source).__name__} is no model: give {_ACCEPTED}")
    return kinds[package]
