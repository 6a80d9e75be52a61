"""Where the filters of an ONNX model stand: initializers and Constant nodes, seen through Identity and subgraphs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

ONNX_DOMAINS = ("", "ai.onnx")

#: Which input of each kind of convolution is its filter.
FILTER_SLOTS = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3}
#: Which input of each kind of linear layer is its weight.
LINEAR_SLOTS = {"Gemm": 1, "MatMul": 1}


class Use(NamedTuple):
    """Input `slot` of node `node` of scope `scope`; -1 for both where the value is an output of the scope."""

    scope: int
    node: int
    slot: int


class Origin(NamedTuple):
    """The value behind a name: the scope (by number) that defines it, and its name there."""

    scope: int
    name: str


@dataclass
class Scope:
    """One graph, subgraph or function; `parent` is the number of the scope around it, -1 for none."""

    body: GraphProto | FunctionProto
    parent: int

    def __post_init__(self) -> None:
        self.nodes = list(self.body.node)
        self.producers = {name: node for node in self.nodes for name in node.output if name}
        if hasattr(self.body, "initializer"):
            self.initializers = {tensor.name: tensor for tensor in self.body.initializer}
            self.sparse = {tensor.values.name for tensor in self.body.sparse_initializer}
            self.inputs = {value.name for value in self.body.input}
            self.outputs = [value.name for value in self.body.output]
        else:
            self.initializers, self.sparse = {}, set()
            self.inputs, self.outputs = set(self.body.input), list(self.body.output)

    def defines(self, name: str) -> bool:
        return name in self.producers or name in self.initializers or name in self.inputs or name in self.sparse


class ModelGraph:
    """All scopes of a model, with the origin of every name and the uses of every origin."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.scopes: list[Scope] = []
        self._add(model.graph, -1)
        for function in model.functions:
            self._add(function, -1)
        self.uses: dict[Origin, set[Use]] = {}
        for number, scope in enumerate(self.scopes):
            for at, node in enumerate(scope.nodes):
                # An Identity only renames; what counts is who reads its output.
                if not is_op(node, "Identity"):
                    for slot, name in enumerate(node.input):
                        self.uses.setdefault(self.origin(number, name), set()).add(Use(number, at, slot))
            for name in scope.outputs:
                self.uses.setdefault(self.origin(number, name), set()).add(Use(number, -1, -1))

    def _add(self, body: GraphProto | FunctionProto, parent: int) -> None:
        scope, number = Scope(body, parent), len(self.scopes)
        self.scopes.append(scope)
        for node in scope.nodes:
            for attribute in node.attribute:
                for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                    self._add(graph, number)

    def layers(self, linear: bool) -> Iterator[tuple[Use, NodeProto]]:
        """Every convolution (not the transposed ones, but the quantised ones) with the use that is its filter.

        With `linear` also the linear layers.
        """
        slots = {**FILTER_SLOTS, **LINEAR_SLOTS} if linear else FILTER_SLOTS
        for number, scope in enumerate(self.scopes):
            for at, node in enumerate(scope.nodes):
                slot = slots.get(node.op_type)
                if slot is not None and is_op(node, node.op_type) and len(node.input) > slot:
                    yield Use(number, at, slot), node

    def origin(self, number: int, name: str) -> Origin:
        """Follow a name outwards through the scopes and backwards through Identity nodes."""
        seen: set[Origin] = set()
        while True:
            while number >= 0 and not self.scopes[number].defines(name):
                number = self.scopes[number].parent
            origin = Origin(number, name)
            producer = self.producer(origin)
            # A damaged model may have Identity nodes without an input, or in a ring.
            if producer is None or not is_op(producer, "Identity") or not producer.input or origin in seen:
                return origin
            seen.add(origin)
            name = producer.input[0]

    def producer(self, origin: Origin) -> NodeProto | None:
        return self.scopes[origin.scope].producers.get(origin.name) if origin.scope >= 0 else None

    def tensor(self, origin: Origin) -> TensorProto | None:
        """The stored tensor at an origin, None where the value is not stored densely in the model."""
        if origin.scope < 0:
            return None
        producer = self.producer(origin)
        if producer is None:
            return self.scopes[origin.scope].initializers.get(origin.name)
        if is_op(producer, "Constant"):
            values = (attribute for attribute in producer.attribute if attribute.name == "value")
            return next((value.t for value in values if value.HasField("t")), None)
        return None

    def why_not_stored(self, origin: Origin) -> str:
        """Why `tensor` gave None, in words."""
        producer = self.producer(origin)
        if producer is not None:
            if producer.op_type == "DequantizeLinear":
                return "the filter is quantised"
            if is_op(producer, "Constant"):
                return "the filter is a Constant without a dense tensor"
            return f"the filter is computed by a {producer.op_type} node"
        if origin.scope >= 0 and origin.name in self.scopes[origin.scope].sparse:
            return "the filter is stored as a sparse initializer"
        return "the filter is an input"

    def clone(self, origin: Origin, readers: list[Use]) -> TensorProto:
        """Store the tensor at `origin` once more, under a new name that the `readers` then read."""
        from onnx import helper

        original, scope = self.tensor(origin), self.scopes[origin.scope]
        assert original is not None
        name = self._unused_name(f"{origin.name}_pruned")
        if origin.name in scope.initializers:
            tensor = scope.body.initializer.add()
            tensor.CopyFrom(original)
            if self.model.ir_version < 4 and origin.name in scope.inputs:
                # Up to IR version 3 every initializer must also be listed as an input.
                scope.body.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
            tensor.name = name
            scope.initializers[name] = tensor
        else:
            # First in the graph: a Constant reads nothing, so every reader stands behind it.
            scope.body.node.insert(0, helper.make_node("Constant", [], [name], name=name, value=original))
            tensor = scope.body.node[0].attribute[0].t
            scope.producers[name] = scope.body.node[0]
        for use in readers:
            self.scopes[use.scope].nodes[use.node].input[use.slot] = name
        return tensor

    def _unused_name(self, wanted: str) -> str:
        name, number = wanted, 1
        while any(scope.defines(name) for scope in self.scopes):
            number += 1
            name = f"{wanted}_{number}"
        return name


def is_op(node: NodeProto, op_type: str) -> bool:
    """Whether the node is this operator of ONNX itself, not one of that name from another domain."""
    return node.op_type == op_type and node.domain in ONNX_DOMAINS
