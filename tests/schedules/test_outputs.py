"""Kernels that store their result as slices of wider tensors, and leave the rest of those as it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tvm

from tests.cases import Case, reference
from tests.cuda_on_cpu import outputs_of
from tests.schedules.running import CPU, GPU, kernel, shared_bytes
from tvm_sparse.errors import InputError
from tvm_sparse.oracle import relative_error
from tvm_sparse.schedules.outputs import Slice, store_slices
from tvm_sparse.workload import ConvWorkload, Epilogue

WORKLOAD = ConvWorkload(2, 6, 9, 10, 12, 3, 3, padding=(1, 1, 1, 1), epilogue=Epilogue(bias=True, activation="relu"))
POINTWISE = replace(WORKLOAD, r=1, s=1, padding=(0, 0, 0, 0)).flattened()
#: Slices of the 12 channels, and the widths of the tensors they go to.
LAYOUTS = {
    "one slice": ([Slice(12, 0, 5)], [20]),
    "three tensors": ([Slice(5, 1, 0), Slice(3, 0, 4), Slice(4, 2, 0)], [7, 5, 6]),
    "two slices of one tensor": ([Slice(5, 0, 7), Slice(7, 0, 0)], [12]),
}
TEMPLATES = ("cpu_vector", "fallback", "cuda_pixel", "cuda_pixel_nonzero", "cuda_pattern", "cuda_dense")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_slices_are_stored_where_they_belong(name, layout, tmp_path):
    workload = POINTWISE if layout == "three tensors" else WORKLOAD
    case, target = Case(workload, 0.3, "rows", 7), GPU if name.startswith("cuda") else CPU
    built = kernel(name, case, target)
    slices, widths = LAYOUTS[layout]
    shapes = [(2, width, workload.p, workload.q) for width in widths]
    func = store_slices(built.func, slices, shapes)
    tensors = [np.full(shape, np.nan, np.float32) for shape in shapes]
    inputs = case.inputs()
    if target is CPU:
        ours = [tvm.runtime.tensor(tensor) for tensor in tensors]
        arguments = (inputs["x"], *built.constants.arrays, inputs["bias"])
        tvm.compile(tvm.IRModule({"main": func}), target=CPU)(*map(tvm.runtime.tensor, arguments), *ours)
        tensors = [tensor.numpy() for tensor in ours]
    else:
        names = [param.name for param in func.params]
        constants = dict(zip(names[1:], built.constants.arrays, strict=False))
        arrays = {**inputs, **constants, **dict(zip(names[-len(widths) :], tensors, strict=True))}
        tensors = list(outputs_of(func, target, arrays, shared_bytes(built), tmp_path).values())
    expected = reference(workload, case.weight(), inputs)
    written = [np.zeros(tensor.shape, bool) for tensor in tensors]
    begin = 0
    for part in slices:
        theirs = expected[:, begin : begin + part.channels]
        place = slice(part.first, part.first + part.channels)
        assert relative_error(tensors[part.tensor][:, place], theirs) <= 1e-5
        written[part.tensor][:, place] = True
        begin += part.channels
    for tensor, own in zip(tensors, written, strict=True):
        assert np.isnan(tensor[~own]).all() and not np.isnan(tensor[own]).any()


@pytest.mark.parametrize(
    ("slices", "shape", "message"),
    [
        ([Slice(5, 0, 0)], (2, 12, 9, 10), "12 output channels"),
        ([Slice(12, 0, 1)], (2, 12, 9, 10), "beyond its tensor"),
        ([Slice(12, 0, 0)], (2, 2**24, 9, 10), "more elements than int32"),
        ([Slice(12, 0, 0)], (2, 12), "cannot hold"),
        ([Slice(12, 0, 0)], (2, 12, 10, 9), "cannot hold"),
    ],
)
def test_slices_that_do_not_fit(slices, shape, message):
    built = kernel("fallback", Case(WORKLOAD, 0.3, "", 0), CPU)
    with pytest.raises(InputError, match=message):
        store_slices(built.func, slices, [shape])


def test_a_single_pixel_is_stored_flat():
    case = Case(replace(POINTWISE, w=1), 0.3, "", 0)
    built, inputs = kernel("cpu_vector", case, CPU), case.inputs()
    func = store_slices(built.func, [Slice(12, 0, 0)], [(2, 12)])
    y = tvm.runtime.tensor(np.full((2, 12), np.nan, np.float32))
    arguments = (inputs["x"], *built.constants.arrays, inputs["bias"])
    tvm.compile(tvm.IRModule({"main": func}), target=CPU)(*map(tvm.runtime.tensor, arguments), y)
    assert case.error(y.numpy().reshape(2, 12, 1, 1)) <= 1e-5
