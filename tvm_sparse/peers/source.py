"""The model a library was made from, as the dense frameworks take it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_sparse.errors import InputError
from tvm_sparse.network.importer import model_kind
from tvm_sparse.network.references import OnnxRuntimeReference

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class DenseModel:
    """`torch_module` gives a module on a device, in float32; `onnx` is the model with pinned shapes, if it is one."""

    torch_module: Callable[[str], Any]
    onnx: Any = None

    def onnxruntime(self, inputs: dict[str, Array], threads: int) -> Callable[[], list[Array]]:
        """A call on fixed inputs, of an ONNX model."""
        session = OnnxRuntimeReference(self.onnx, threads).session()
        return lambda: session.run(None, inputs)


def dense_model(model: Any, specs: Sequence[Any]) -> DenseModel:
    """Read what `tvm_sparse.compile` takes, pinned to the inputs `specs` of a library.

    Raises
    ------
    ModelError
        It cannot be read.
    InputError
        Its inputs are others.
    """
    if model_kind(model) == ".onnx":
        return _of_onnx(model, specs)
    return _of_torch(model, specs)


def _of_onnx(model: Any, specs: Sequence[Any]) -> DenseModel:
    from tvm_sparse.network.onnx_convert import slim_model
    from tvm_sparse.network.onnx_import import prepared_onnx
    from tvm_sparse.network.onnx_model import graph_inputs

    prepared, label = prepared_onnx(model, shapes={spec.name: spec.shape for spec in specs})
    _check_names(label, [value.name for value in graph_inputs(prepared)], specs)

    def make(device: str) -> Any:
        from tvm_sparse.peers.onnx_module import torch_module

        return torch_module(slim_model(prepared, label), label).to(device)

    return DenseModel(make, prepared)


def _of_torch(model: Any, specs: Sequence[Any]) -> DenseModel:
    from tvm_sparse.network.torch_import import torch_program

    program, label, _ = torch_program(model)
    _check_names(label, list(program.graph_signature.user_inputs), specs)

    def make(device: str) -> Any:
        if device == "cpu":
            return program.module()
        from torch.export.passes import move_to_device_pass

        return move_to_device_pass(copy.deepcopy(program), device).module()

    return DenseModel(make)


def _check_names(label: str, names: Sequence[str], specs: Sequence[Any]) -> None:
    wanted = [spec.name for spec in specs]
    if list(names) != wanted:
        raise InputError(
            f"{label}: its inputs are {', '.join(names)}, those of the library {', '.join(wanted)}: give the model it "
            "was compiled from"
        )
