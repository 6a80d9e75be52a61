"""An ONNX graph as a torch module: what a user who has the dense network in torch would run.

A batch norm behind a convolution is folded into its filter, as whoever deploys a network does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

from tvm_sparse.errors import ModelError

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, Any]
#: Operators whose output is a tensor of its own, which an activation behind them may overwrite.
_OWNERS = ("Conv", "BatchNormalization", "Gemm", "Add")


def torch_module(model: onnx.ModelProto, label: str) -> torch.fx.GraphModule:
    """A module that takes the model's inputs in order and returns its output, or a tuple of several.

    Parameters
    ----------
    model
        With pinned shapes and explicit padding: see `network.onnx_import.prepared_onnx`.
    label
        The model, for messages.

    Raises
    ------
    ModelError
        An operator, or what a node wants of it, is unknown here: naming both.
    """
    import torch

    from tvm_sparse.peers.onnx_ops import OPERATORS

    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = fold_batch_norms(list(model.graph.node), arrays, {value.name for value in model.graph.output})
    build = _Building(model, nodes, arrays, label)
    for node in nodes:
        op = Op(build, node)
        if node.op_type == "Constant":
            arrays[node.output[0]] = numpy_helper.to_array(op.attribute("value"))
        elif node.op_type in OPERATORS:
            build.values[node.output[0]] = OPERATORS[node.op_type](op)
        else:
            raise op.unsupported("this operator")
    outputs = tuple(build.value(value.name) for value in model.graph.output)
    build.graph.output(outputs[0] if len(outputs) == 1 else outputs)
    return torch.fx.GraphModule(build.root, build.graph).eval()


def fold_batch_norms(
    nodes: Sequence[onnx.NodeProto], arrays: dict[str, Array], outputs: set[str]
) -> list[onnx.NodeProto]:
    """The nodes without the batch norms that are the only reader of a convolution with weights of its own.

    The folded weights take the place of the old ones in `arrays`.
    """
    readers = Counter(name for node in nodes for name in node.input)
    convolutions = {node.output[0]: node for node in nodes if node.op_type == "Conv"}
    folded: dict[str, onnx.NodeProto] = {}  # by the old output
    for norm in nodes:
        conv = convolutions.get(norm.input[0]) if norm.op_type == "BatchNormalization" else None
        if conv is None or readers[conv.output[0]] > 1 or conv.output[0] in outputs or readers[conv.input[1]] > 1:
            continue
        given = [name for name in (*conv.input, *norm.input[1:]) if name][1:]
        if not all(name in arrays for name in given):
            continue
        epsilon = next((entry.f for entry in norm.attribute if entry.name == "epsilon"), 1e-5)
        scale, shift, mean, variance = (arrays[name].astype(np.float64) for name in norm.input[1:5])
        factor, weight = scale / np.sqrt(variance + epsilon), arrays[conv.input[1]]
        bias = arrays[conv.input[2]] if len(conv.input) > 2 and conv.input[2] else 0.0
        arrays[conv.input[1]] = (weight * factor.reshape(-1, *[1] * (weight.ndim - 1))).astype(weight.dtype)
        name = conv.output[0]  # free now
        arrays[name] = ((bias - mean) * factor + shift).astype(weight.dtype)
        new = onnx.NodeProto()
        new.CopyFrom(conv)
        del new.input[2:]
        new.input.append(name)
        new.output[0] = norm.output[0]
        folded[conv.output[0]] = new
    gone = {node.output[0] for node in folded.values()}
    return [folded.get(node.output[0], node) for node in nodes if not (node.output and node.output[0] in gone)]


class _Building:
    """A torch graph under way, and what is known of its values."""

    def __init__(
        self, model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], arrays: dict[str, Array], label: str
    ) -> None:
        import torch

        self.label, self.arrays = label, arrays
        self.opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
        self.root, self.graph = torch.nn.Module(), torch.fx.Graph()
        given = [value.name for value in model.graph.input if value.name not in arrays]
        self.values = {name: self.graph.placeholder(f"input_{index}") for index, name in enumerate(given)}
        self.makers = {name: node.op_type for node in nodes for name in node.output}
        self.readers = Counter(name for node in nodes for name in node.input)
        self.readers.update(value.name for value in model.graph.output)
        self.ranks = {
            value.name: len(value.type.tensor_type.shape.dim)
            for value in (*model.graph.input, *model.graph.value_info, *model.graph.output)
            if value.type.tensor_type.HasField("shape")
        }
        self._weights = 0

    def value(self, name: str) -> torch.fx.Node:
        """The value of this name, a constant as a parameter."""
        if name not in self.values:
            self.values[name] = self.weight(self.arrays[name])
        return self.values[name]

    def weight(self, array: Array) -> torch.fx.Node:
        """A new parameter, so that it moves and converts with the module; integers stay what they are."""
        import torch

        name, self._weights = f"weight_{self._weights}", self._weights + 1
        tensor = torch.from_numpy(np.array(array))  # a copy: the array of a protobuf is read-only
        if tensor.is_floating_point():
            self.root.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=False))
        else:
            self.root.register_buffer(name, tensor)
        return self.graph.get_attr(name)


class Op:
    """One node under translation: its inputs by position, its attributes, and calls to emit."""

    def __init__(self, build: _Building, node: onnx.NodeProto) -> None:
        self._build, self._node = build, node
        self._attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        self.opset = build.opset

    def has(self, position: int) -> bool:
        return position < len(self._node.input) and bool(self._node.input[position])

    def value(self, position: int) -> Any:
        """An input as a value of the torch graph; None where the node leaves it out."""
        return self._build.value(self._node.input[position]) if self.has(position) else None

    def values(self) -> list[Any]:
        return [self.value(position) for position in range(len(self._node.input))]

    def is_constant(self, position: int) -> bool:
        return self.has(position) and self._node.input[position] in self._build.arrays

    def array(self, position: int) -> Array:
        """An input that must be a constant."""
        if not self.is_constant(position):
            raise self.unsupported(f"input {position} computed at run time")
        return self._build.arrays[self._node.input[position]]

    def integers(self, position: int) -> list[int]:
        return [int(item) for item in self.array(position).ravel()]

    def rank(self, position: int) -> int | None:
        """The number of axes of an input, if that is known."""
        if self.is_constant(position):
            return self.array(position).ndim
        return self._build.ranks.get(self._node.input[position])

    def attribute(self, name: str, *default: Any) -> Any:
        if name in self._attributes or not default:
            return self._attributes[name]
        return default[0]

    def overwritable(self, position: int) -> bool:
        """Whether nobody else reads this input, so that its memory may take the output."""
        name = self._node.input[position]
        return self._build.readers[name] == 1 and self._build.makers.get(name) in _OWNERS

    def weight(self, array: Array) -> Any:
        """A value of the torch graph for weights made from a constant input."""
        return self._build.weight(array)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._build.graph.call_function(function, arguments)

    def unsupported(self, what: str) -> ModelError:
        name = self._node.name or next(iter(self._node.output), "")
        return ModelError(
            f"{self._build.label}: {self._node.op_type} node '{name}': {what} has no counterpart in torch here; "
            "compare with onnxruntime, or give the .pt2 file"
        )
