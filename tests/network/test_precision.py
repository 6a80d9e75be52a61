"""Networks stored in 16 bits: what flows between layers, what stays float32, and how far results are off."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import tvm

from tests.network.layer_cases import layer_cases
from tests.network.onnx_models import one_conv, random_inputs, weights
from tests.network.running import build, run_poisoned
from tests.schedules.test_cuda_limits import has_cuda
from tvm_sparse.errors import InputError
from tvm_sparse.network.imported import ImportedModel, bindings_of, operator
from tvm_sparse.network.match import match_layers
from tvm_sparse.network.onnx_import import import_onnx
from tvm_sparse.network.precision import check_precision, store_in, sum_in_float32
from tvm_sparse.oracle import relative_error
from tvm_sparse.targets import make_target
from tvm_sparse.tvm_support import check_cuda_modules, cuda_build

CASES = {case.name: case for case in layer_cases()}
#: The largest relative error of these small networks.
NARROW = {"float16": 2e-3, "bfloat16": 1.6e-2}
needs_cuda = pytest.mark.skipif(not has_cuda(), reason="no nvcc here")


@cache
def imported(name: str) -> ImportedModel:
    return import_onnx(CASES[name].model)


def narrow(name: str, dtype: str) -> ImportedModel:
    return replace(imported(name), module=store_in(imported(name).module, dtype))


@pytest.mark.parametrize("name", CASES)
def test_the_same_layers_are_found_with_the_same_epilogues(name: str) -> None:
    for dtype in NARROW:
        function = narrow(name, dtype).module["main"]
        layers = match_layers(function, imported(name).convolutions, tuple(NARROW))
        assert {layer.name: layer.workload and str(layer.workload.epilogue) for layer in layers} == CASES[name].layers
        assert {layer.workload.dtype for layer in layers if layer.workload} <= {dtype}
        before = imported(name).module["main"]
        assert [param.ty for param in function.params] == [param.ty for param in before.params]
        assert function.body.body.ty == before.body.body.ty


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(
    "name", ["residual, relu", "hard-swish", "squeeze and excite", "classifier", "line block", "an input is an output"]
)
def test_results_are_near(name: str, dtype: str) -> None:
    stored = narrow(name, dtype)
    inputs = random_inputs(stored)
    assert stored.reference is not None
    outputs = run_poisoned(tvm.compile(sum_in_float32(stored.module), target="llvm"), stored, inputs)
    for ours, theirs in zip(outputs, stored.reference(inputs), strict=True):
        assert ours.dtype == theirs.dtype
        assert 0 < relative_error(ours, theirs) < NARROW[dtype] or np.array_equal(ours, inputs["x"])


def test_what_sums_gives_float32() -> None:
    """Neither a pooling nor a matrix product adds up 16-bit numbers, nor a convolution that no kernel takes."""
    bindings = bindings_of(sum_in_float32(narrow("classifier", "float16").module)["main"])
    summed = {operator(value): str(var.ty.dtype) for var, value in bindings}
    assert summed["relax.matmul"] == summed["relax.nn.conv2d"] == summed["relax.mean"] == "float32"
    (product,) = [value for _, value in bindings if operator(value) == "relax.matmul"]
    assert [str(arg.ty.dtype) for arg in product.args] == ["float16"] * 2


def test_a_filter_that_float16_cannot_hold_stays_float32() -> None:
    filters = weights(4, 3, 3, 3)
    filters[0, 0] = 1e5
    large = import_onnx(one_conv(weight=filters))
    for dtype, expected in (("float16", "float32"), ("bfloat16", "bfloat16")):
        (layer,) = match_layers(store_in(large.module, dtype)["main"], large.convolutions, (*NARROW, "float32"))
        assert layer.workload is not None and layer.workload.dtype == expected


def test_float32_is_what_it_was() -> None:
    module = imported("classifier").module
    assert store_in(module, "float32") is module


def test_refusals() -> None:
    check_precision("bfloat16", "cuda")
    check_precision("float32", "llvm")
    with pytest.raises(InputError, match="unknown precision 'half': choose one of float32, float16, bfloat16"):
        check_precision("half", "cuda")
    with pytest.raises(InputError, match="precision float16 is for --target cuda"):
        check_precision("float16", "llvm")


@needs_cuda
@pytest.mark.parametrize("dtype", NARROW)
def test_a_gpu_library_is_made(dtype: str) -> None:
    target = make_target("cuda", arch="sm_90")
    for name in ("classifier", "squeeze and excite"):
        with cuda_build("sm_90", target=target) as under_way:
            built = build(narrow(name, dtype), "auto", target)
            check_cuda_modules(built.executable, under_way)
        assert built.layers[0].template.startswith("cuda_")
