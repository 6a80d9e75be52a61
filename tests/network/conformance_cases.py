"""The ONNX project's own cases for Conv and ConvTranspose, with filters and biases as constants."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test
from onnx import numpy_helper

Array = np.ndarray[Any, Any]
OPERATORS = ("Conv", "ConvTranspose")


@dataclass(frozen=True)
class ConformanceCase:
    """A model, its inputs by name and what ONNX says comes out."""

    name: str
    model: onnx.ModelProto
    inputs: dict[str, Array]
    outputs: list[Array]


def conformance_cases() -> Iterator[ConformanceCase]:
    """Every shipped case for a convolution, in a fixed order."""
    yield from sorted((*_node_cases(), *_stored_cases()), key=lambda case: case.name)


def masked(case: ConformanceCase, sparsity: float, seed: int = 0) -> ConformanceCase:
    """The case with that share of its filter's weights set to zero; the outputs are those of onnx.reference."""
    from onnx.reference import ReferenceEvaluator

    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    (node,) = (node for node in model.graph.node if node.op_type in OPERATORS)
    (init,) = (init for init in model.graph.initializer if init.name == node.input[1])
    weight = numpy_helper.to_array(init).copy()
    dropped = np.random.default_rng(seed).permutation(weight.size)[: round(sparsity * weight.size)]
    weight.reshape(-1)[dropped] = 0
    init.CopyFrom(numpy_helper.from_array(weight, init.name))
    outputs = [np.asarray(output) for output in ReferenceEvaluator(model).run(None, case.inputs)]
    return replace(case, name=f"{case.name}_{sparsity:.0%}", model=model, outputs=outputs)


def _node_cases() -> Iterator[ConformanceCase]:
    node = importlib.import_module("onnx.backend.test.case.node")
    for module in ("conv", "convtranspose"):  # the cases of a module are made while it is imported
        importlib.import_module(f"onnx.backend.test.case.node.{module}")
    for case in node._NodeTestCases:
        if {op.op_type for op in case.model.graph.node} & set(OPERATORS):
            (inputs, outputs), *_ = case.data_sets
            yield _bound(case.name, case.model, list(inputs), list(outputs))


def _stored_cases() -> Iterator[ConformanceCase]:
    root = Path(onnx.backend.test.__file__).parent / "data"
    for folder in (*root.glob("pytorch-converted/test_Conv*"), *root.glob("pytorch-operator/test_operator_conv*")):
        data = folder / "test_data_set_0"
        inputs, outputs = (
            [numpy_helper.to_array(onnx.load_tensor(path)) for path in sorted(data.glob(f"{kind}_*.pb"))]
            for kind in ("input", "output")
        )
        yield _bound(folder.name, onnx.load(folder / "model.onnx"), inputs, outputs)


def _bound(name: str, model: onnx.ModelProto, inputs: list[Array], outputs: list[Array]) -> ConformanceCase:
    """Keep the first input as such and make constants of all others: filter and bias.

    They stay listed among the graph's inputs, as old versions of ONNX ask for.
    """
    bound = onnx.ModelProto()
    bound.CopyFrom(model)
    constants = {init.name for init in model.graph.initializer}
    given = [value.name for value in model.graph.input if value.name not in constants]
    for value, array in zip(given[1:], inputs[1:], strict=True):
        bound.graph.initializer.append(numpy_helper.from_array(array, value))
    return ConformanceCase(name, bound, {given[0]: inputs[0]}, outputs)
