"""A thin writer of ONNX graphs: one method a layer, built on onnx.helper alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8  # the one that belongs to opset 17, so that older runtimes read the file too


class Tensor(NamedTuple):
    """A value in the graph: its name and its number of channels (axis 1)."""

    name: str
    channels: int


class OnnxGraph:
    """Collects nodes and weights in float32, activations NCHW, filters OIHW.

    Every node is named as its layer, and its output carries the same name.

    Parameters
    ----------
    name : str
        Name of the graph.
    input_shape : tuple
        (n, c, h, w); n may be a string, which makes the batch symbolic.
    """

    def __init__(self, name: str, input_shape: tuple[int | str, int, int, int]) -> None:
        self.name = name
        self.batch = input_shape[0]
        self.input = Tensor("input", input_shape[1])
        self._input_info = helper.make_tensor_value_info("input", TensorProto.FLOAT, input_shape)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def conv(
        self,
        name: str,
        x: Tensor,
        weight: np.ndarray,
        bias: np.ndarray | None = None,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
    ) -> Tensor:
        """Convolve x with weight (oc, c / groups, r, s), padding alike on all sides."""
        inputs = [x.name, self._weight(f"{name}.weight", weight)]
        if bias is not None:
            inputs.append(self._weight(f"{name}.bias", bias))
        r, s = weight.shape[2:]
        attributes = {"kernel_shape": [r, s], "strides": [stride] * 2, "pads": [padding] * 4, "group": groups}
        return self._node("Conv", name, inputs, weight.shape[0], **attributes)

    def batch_norm(
        self, name: str, x: Tensor, *, gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, variance: np.ndarray
    ) -> Tensor:
        """Normalise each channel by its stored statistics; all four arrays are (c,)."""
        parameters = {"weight": gamma, "bias": beta, "running_mean": mean, "running_var": variance}
        inputs = [x.name, *(self._weight(f"{name}.{key}", value) for key, value in parameters.items())]
        return self._node("BatchNormalization", name, inputs, x.channels, epsilon=1e-5)

    def relu(self, name: str, x: Tensor) -> Tensor:
        """Take max(x, 0)."""
        return self._node("Relu", name, [x.name], x.channels)

    def relu6(self, name: str, x: Tensor) -> Tensor:
        """Clip x to [0, 6]."""
        low = self._weight(f"{name}.min", np.array(0, np.float32))
        high = self._weight(f"{name}.max", np.array(6, np.float32))
        return self._node("Clip", name, [x.name, low, high], x.channels)

    def add(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        """Add two tensors of one shape."""
        return self._node("Add", name, [x.name, y.name], x.channels)

    def concat(self, name: str, parts: list[Tensor]) -> Tensor:
        """Join tensors along the channels."""
        return self._node("Concat", name, [part.name for part in parts], sum(p.channels for p in parts), axis=1)

    def max_pool(
        self, name: str, x: Tensor, kernel: int, stride: int, *, padding: int = 0, ceil_mode: bool = False
    ) -> Tensor:
        """Pool by maximum over square windows; ceil_mode keeps the last, partial window."""
        attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [padding] * 4}
        return self._node("MaxPool", name, [x.name], x.channels, ceil_mode=int(ceil_mode), **attributes)

    def local_response_norm(self, name: str, x: Tensor) -> Tensor:
        """Normalise over 5 neighbouring channels with the constants of Krizhevsky et al. 2012, section 3.3.

        ONNX divides alpha by the window, the paper does not: hence 5e-4 for the paper's 1e-4.
        """
        return self._node("LRN", name, [x.name], x.channels, size=5, alpha=5e-4, beta=0.75, bias=2.0)

    def global_average_pool(self, name: str, x: Tensor) -> Tensor:
        """Average each channel over all pixels: (n, c, 1, 1)."""
        return self._node("GlobalAveragePool", name, [x.name], x.channels)

    def flatten(self, name: str, x: Tensor, features: int) -> Tensor:
        """Make (n, features) of (n, c, h, w)."""
        return self._node("Flatten", name, [x.name], features, axis=1)

    def linear(self, name: str, x: Tensor, weight: np.ndarray, bias: np.ndarray) -> Tensor:
        """Compute x · weightᵀ + bias, weight (out, in)."""
        inputs = [x.name, self._weight(f"{name}.weight", weight), self._weight(f"{name}.bias", bias)]
        return self._node("Gemm", name, inputs, weight.shape[0], transB=1)

    def model(self, last: Tensor) -> onnx.ModelProto:
        """Close the graph with the layer added last, (n, classes), as its output "logits"; return the checked model."""
        self._nodes[-1].output[0] = "logits"
        info = helper.make_tensor_value_info("logits", TensorProto.FLOAT, (self.batch, last.channels))
        graph = helper.make_graph(self._nodes, self.name, [self._input_info], [info], self._weights)
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="tvm_sparse")
        onnx.checker.check_model(model)
        return model

    def _node(self, op: str, name: str, inputs: list[str], channels: int, **attributes: object) -> Tensor:
        self._nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return Tensor(name, channels)

    def _weight(self, name: str, value: np.ndarray) -> str:
        self._weights.append(numpy_helper.from_array(np.asarray(value, dtype=np.float32), name))
        return name
