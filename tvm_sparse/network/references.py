"""The original frameworks as references for verification. Neither is imported before the first call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_sparse.network.imported import Array

if TYPE_CHECKING:
    import onnx
    import torch


class OnnxRuntimeReference:
    """The pinned ONNX model in onnxruntime on `threads` threads; the session is made at the first call.

    Change `threads` before the first call.
    """

    def __init__(self, model: onnx.ModelProto, threads: int = 1) -> None:
        self.threads = threads
        self._model = model
        self._session: Any = None

    def __call__(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Outputs in the model's order for inputs by name."""
        return [np.asarray(output) for output in self.session().run(None, dict(inputs))]

    def session(self) -> Any:
        """The `onnxruntime.InferenceSession`, for timing."""
        if self._session is None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = self.threads
            options.inter_op_num_threads = 1
            options.log_severity_level = 3
            self._session = onnxruntime.InferenceSession(
                self._model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        return self._session


class TorchReference:
    """An exported program run by torch on `threads` threads."""

    def __init__(self, program: torch.export.ExportedProgram, names: tuple[str, ...], threads: int = 1) -> None:
        self.threads = threads
        self._program = program
        self._names = names
        self._module: Any = None

    def __call__(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Outputs in the program's order for inputs by name."""
        import torch

        if self._module is None:
            self._module = self._program.module()
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with torch.no_grad():
                result = self._module(*(torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in self._names))
        finally:
            torch.set_num_threads(before)
        leaves, _ = torch.utils._pytree.tree_flatten(result)
        return [leaf.detach().numpy() for leaf in leaves]
