"""ONNX's own cases for convolutions through the direct sparse convolution, as they are and with masked filters."""

from __future__ import annotations

import pytest

from tests.network.conformance_cases import ConformanceCase, conformance_cases, masked
from tests.network.running import build, run_poisoned
from tvm_sparse.network.onnx_import import import_onnx
from tvm_sparse.oracle import relative_error

CASES = list(conformance_cases())
SPARSE = 26  # the others are transposed or three-dimensional


def filter_rank(case: ConformanceCase) -> int:
    (node,) = (node for node in case.model.graph.node if node.op_type in ("Conv", "ConvTranspose"))
    (weight,) = (init for init in case.model.graph.initializer if init.name == node.input[1])
    return len(weight.dims)


def can_be_sparse(case: ConformanceCase) -> bool:
    transposed = any(node.op_type == "ConvTranspose" for node in case.model.graph.node)
    return not transposed and filter_rank(case) < 5


def test_all_cases_are_there() -> None:
    assert len(CASES) == 47
    assert sum(map(can_be_sparse, CASES)) == SPARSE


@pytest.mark.parametrize("sparsity", [None, 0.5, 0.9], ids=["as shipped", "50 %", "90 %"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: ConformanceCase, sparsity: float | None) -> None:
    case = case if sparsity is None else masked(case, sparsity)
    model = import_onnx(case.model)
    built = build(model, "always")
    outputs = run_poisoned(built.executable, model, case.inputs)
    for ours, theirs in zip(outputs, case.outputs, strict=True):
        assert ours.dtype == theirs.dtype and (theirs.any() or sparsity == 0.9)
        assert relative_error(ours, theirs) <= 1e-5
    (layer,) = built.layers
    assert layer.decision == ("sparse" if can_be_sparse(case) else "dense")
