"""Every small network, decided each way, computes what onnxruntime computes."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import cache

import numpy as np
import pytest
import tvm
from onnx.reference import ReferenceEvaluator
from tvm import relax
from tvm.script import tirx as T

from tests.network.layer_cases import layer_cases
from tests.network.onnx_models import Array, random_inputs
from tests.network.running import build, run_poisoned
from tvm_sparse.network.decide import MODES
from tvm_sparse.network.imported import ImportedModel
from tvm_sparse.network.onnx_import import import_onnx
from tvm_sparse.oracle import relative_error

CASES = {case.name: case for case in layer_cases()}
#: Networks too small or too plain to have an output that says anything: checked for equality all the same.
PLAIN = {"one of everything"}
NOT_IN_ONNXRUNTIME = {"float64", "float64, one-dimensional"}


@cache
def imported(name: str) -> ImportedModel:
    return import_onnx(CASES[name].model)


def expected(name: str, inputs: Mapping[str, Array]) -> list[Array]:
    model = imported(name)
    if name in NOT_IN_ONNXRUNTIME:
        return [np.asarray(output) for output in ReferenceEvaluator(CASES[name].model).run(None, dict(inputs))]
    assert model.reference is not None
    return model.reference(inputs)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_outputs(name: str, mode: str) -> None:
    model = imported(name)
    inputs = random_inputs(model)
    built = build(model, mode)
    outputs = run_poisoned(built.executable, model, inputs)
    for spec, ours, theirs in zip(model.outputs, outputs, expected(name, inputs), strict=True):
        assert (ours.shape, str(ours.dtype)) == (theirs.shape, str(theirs.dtype)) == (spec.shape, spec.dtype)
        assert name in PLAIN or theirs.std() > 1e-3, "an output that says nothing"
        assert relative_error(ours, theirs) <= 1e-5, spec.name
    assert {layer.name for layer in built.layers} == set(CASES[name].layers)
    for layer in built.layers:
        direct = CASES[name].layers[layer.name] is not None
        assert layer.decision in ("sparse", "dense") and layer.reason
        assert (layer.decision == "sparse") == direct or mode != "always"
        assert layer.decision == "dense" or mode != "never"
        assert (layer.template == "operator") == (layer.knobs == {})


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_the_poison_shows_what_a_kernel_forgets_to_write() -> None:
    @T.prim_func(s_tir=True)
    def half(x: T.Buffer((360,), "float32"), y: T.Buffer((360,), "float32")):  # type: ignore
        for i in range(180):
            with T.sblock("copy"):
                at = T.axis.spatial(180, i)
                y[at] = x[at]

    shape = (1, 4, 9, 10)
    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType(shape, "float32"))
    with builder.function("main", [x]):
        function = builder.add_func(half.without_attr("global_symbol"), "half")
        with builder.dataflow():
            flat = builder.emit(relax.op.reshape(x, (360,)))
            y = builder.emit_output(relax.call_tir(function, [flat], relax.TensorType((360,), "float32")))
        builder.emit_func_output(y)
    executable = tvm.compile(builder.get(), target="llvm")
    (output,) = run_poisoned(executable, imported("relu"), {"x": np.ones(shape, np.float32)})
    assert (output[:180] == 1).all() and np.isnan(output[180:]).all()
