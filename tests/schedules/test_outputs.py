"""Kernels that store their result as slices of wider tensors, and leave the rest of those as it was; or by phases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tvm

from tests.cases import Case, reference
from tests.cuda_on_cpu import outputs_of, run
from tests.schedules.running import CPU, GPU, arguments, kernel, shared_bytes
from tvm_sparse.errors import InputError
from tvm_sparse.oracle import relative_error
from tvm_sparse.schedules import template
from tvm_sparse.schedules.outputs import Slice, store_phases, store_slices
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


#: The output of every kind of kernel: template, layer, rows and columns of its output, stride of its phases, knobs.
PLAIN = replace(WORKLOAD, h=8, w=12)
ROW = replace(PLAIN, h=1, w=96, r=1, s=1, padding=(0, 0, 0, 0))
HALF = {"dtype": "float16", "n": 3}
TENSOR = {"rows": 2, "pixel_tiles": 1, "channel_tiles": 1, "warps_along": 1, "warps_across": 1}
PHASES = {
    "pixel": ("cuda_pixel", PLAIN, (8, 12), (2, 2), {}),
    "pixel, one row": ("cuda_pixel", ROW, (8, 12), (2, 3), {}),
    "pixel, flat": ("cuda_pixel", replace(PLAIN, w=14), (8, 14), (1, 2), {"lanes": "flat", "pixels": "1x1x4"}),
    "pixel, pairs of columns": ("cuda_pixel", replace(ROW, **HALF), (8, 12), (2, 2), {"pairs": "float32"}),
    "pixel, pairs of images": ("cuda_pixel", replace(PLAIN, **HALF), (8, 12), (4, 2), {"pairs": "float32"}),
    "splits over warps": (
        "cuda_pixel_nonzero",
        ROW,
        (8, 12),
        (2, 2),
        {"split_over": "warps", "warps": 1, "blocks_per_warp": 4},
    ),
    "splits over blocks": ("cuda_pixel_nonzero", ROW, (12, 8), (3, 2), {"split_over": "blocks"}),
    "pattern": ("cuda_pattern", PLAIN, (8, 12), (2, 2), {}),
    "pattern, own pixel": ("cuda_pattern", ROW, (8, 12), (2, 2), {"stages": 0}),
    "pattern, pairs": ("cuda_pattern", replace(ROW, **HALF), (8, 12), (2, 2), {"stages": 0, "pairs": "float32"}),
    "pattern, pairs over the end of a row": (
        "cuda_pattern",
        replace(ROW, w=104, **HALF),
        (8, 13),
        (2, 1),
        {"stages": 0, "pairs": "float32"},
    ),
    "dense": ("cuda_dense", PLAIN, (8, 12), (2, 2), {}),
    "dense, one row": ("cuda_dense", ROW, (8, 12), (2, 2), {}),
    "tensor": ("cuda_tensor", replace(PLAIN, c=3, stride=(2, 2), h=16, w=24, **HALF), (8, 12), (2, 2), TENSOR),
    "fallback": ("fallback", ROW, (8, 12), (2, 2), {}),
}


def together(planes: np.ndarray, stride: tuple[int, int]) -> np.ndarray:
    """(n, k, h, w) of what is stored by phases."""
    n, channels, h, w = planes.shape
    down, across = stride
    apart = planes.reshape(n, channels // (down * across), down, across, h, w)
    return apart.transpose(0, 1, 4, 2, 5, 3).reshape(n, -1, h * down, w * across)


@pytest.mark.parametrize("name", PHASES)
def test_phases_are_stored_where_they_belong(name, tmp_path):
    chosen, workload, (h, w), (down, across), knobs = PHASES[name]
    case = Case(workload, 0.3 if chosen != "cuda_tensor" else 1.0, "rows", 7)
    built = kernel(chosen, case, GPU, **knobs)
    func = store_phases(built.func, (workload.n, workload.k, h, w), (down, across))
    shape = (workload.n, workload.k * down * across, h // down, w // across)
    arrays = {**arguments(built, case), "out": np.full(shape, np.nan, workload.dtype)}
    planes = run(func, GPU, arrays, shared_bytes(built), tmp_path)
    assert planes.shape == shape
    result = together(planes, (down, across))
    complaint = case.wrong(result.reshape(workload.n, workload.k, workload.p, workload.q))
    assert complaint is None, complaint


def test_phases_of_rows_that_are_dealt_out(tmp_path):
    workload = replace(ROW, k=64, c=32)
    case = Case(workload, 1.0, "", 3)
    weight = (
        case.weight() * (np.random.default_rng(0).random((64, 32)) < np.linspace(0, 0.9, 64)[:, None])[..., None, None]
    )
    knobs = {"warps": 2, "blocks_per_warp": 4, "channels": 8, "lanes": "1x1x32", "pixels": "1x1x1"}
    chosen = template("cuda_pixel")
    built = chosen.kernel(workload, weight, GPU, {**chosen.default(workload, 0.5, GPU), **knobs})
    assert "order" in [param.name for param in built.func.params]
    func = store_phases(built.func, (2, 64, 8, 12), (2, 2))
    arrays = {**arguments(built, case), "out": np.full((2, 256, 4, 6), np.nan, np.float32)}
    result = together(run(func, GPU, arrays, shared_bytes(built), tmp_path), (2, 2))
    expected = reference(workload, weight, case.inputs())
    assert relative_error(result.reshape(expected.shape), expected) <= 1e-5


@pytest.mark.parametrize("name", ["cpu_vector", "fallback"])
def test_phases_of_a_cpu(name):
    case = Case(PLAIN, 0.3, "rows", 7)
    built, inputs = kernel(name, case, CPU), case.inputs()
    func = store_phases(built.func, (2, 12, 8, 12), (2, 3))
    planes = tvm.runtime.tensor(np.full((2, 72, 4, 4), np.nan, np.float32))
    arguments = (inputs["x"], *built.constants.arrays, inputs["bias"])
    tvm.compile(tvm.IRModule({"main": func}), target=CPU)(*map(tvm.runtime.tensor, arguments), planes)
    assert case.wrong(together(planes.numpy(), (2, 3))) is None


@pytest.mark.parametrize(
    ("shape", "stride"),
    [((2, 12, 9, 10), (2, 2)), ((2, 12, 10, 9), (1, 1)), ((2, 6, 9, 10), (3, 1)), ((2, 12, 45, 2), (3, 1))],
)
def test_phases_that_do_not_fit(shape, stride):
    built = kernel("fallback", Case(WORKLOAD, 0.3, "", 0), CPU)
    with pytest.raises(InputError, match="cannot be stored by phases"):
        store_phases(built.func, shape, stride)
