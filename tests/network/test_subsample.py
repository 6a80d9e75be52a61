"""A strided pointwise convolution runs on gathered pixels, and gives the same."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.network.onnx_models import conv, model, random_inputs, tensor, weights
from tests.network.running import build, run_poisoned
from tvm_sparse.network import subsample
from tvm_sparse.network.onnx_import import import_onnx
from tvm_sparse.network.subsample import FEWEST_PIXELS, subsampled
from tvm_sparse.oracle import relative_error
from tvm_sparse.targets import make_target
from tvm_sparse.tvm_support import cuda_target
from tvm_sparse.workload import ConvWorkload

CPU, GPU = make_target("llvm", threads=2), cuda_target("sm_90")
DOWNSAMPLE = ConvWorkload(32, 256, 56, 56, 512, 1, 1, (2, 2))


@pytest.mark.parametrize(
    ("workload", "target", "size"),
    [
        (DOWNSAMPLE, GPU, (28, 28)),
        (replace(DOWNSAMPLE, h=55, w=57, stride=(2, 3)), GPU, (28, 19)),
        (DOWNSAMPLE, CPU, None),
        (replace(DOWNSAMPLE, n=FEWEST_PIXELS // 28**2), GPU, None),
        (replace(DOWNSAMPLE, stride=(1, 1)), GPU, None),
        (replace(DOWNSAMPLE, padding=(0, 0, 1, 0)), GPU, None),
        (replace(DOWNSAMPLE, r=3, padding=(1, 0, 1, 0)), GPU, None),
    ],
)
def test_what_is_left_of_a_workload(workload: ConvWorkload, target: object, size: tuple[int, int] | None) -> None:
    left = subsampled(workload, target)
    if size is None:
        assert left == workload
    else:
        assert left == replace(workload, h=size[0], w=size[1], stride=(1, 1))
        assert (left.p, left.q) == (workload.p, workload.q)


@pytest.mark.parametrize("strides", [[2, 2], [3, 1], [1, 2]])
def test_outputs_are_those_of_the_strided_convolution(strides: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subsample, "FEWEST_PIXELS", 1)
    monkeypatch.setattr(subsample, "subsampled", lambda workload, target: subsampled(workload, GPU))
    nodes = [conv("c", "x", "w b", "t", strides=strides), conv("d", "t", "v", "y", strides=strides)]
    constants = {"w": weights(12, 8, 1, 1), "b": weights(12, seed=1), "v": weights(6, 12, 1, 1, seed=2)}
    imported = import_onnx(model(nodes, constants, [tensor("x", (2, 8, 17, 19))], ["y"]))
    built = build(imported, "always")
    assert all("stride" not in layer.workload for layer in built.layers)
    inputs = random_inputs(imported)
    assert imported.reference is not None
    (ours,), (theirs,) = run_poisoned(built.executable, imported, inputs), imported.reference(inputs)
    assert relative_error(ours, theirs) <= 1e-5
