"""The CUDA rules' kernels, run thread by thread on this CPU, against float64; outputs start as NaN."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tvm import te, tirx, topi
from tvm.s_tir.dlight import ScheduleRule

from tests.cuda_on_cpu import run
from tests.schedules.running import GPU
from tvm_sparse.schedules.rules import cuda_elementwise, cuda_window, schedule_func
from tvm_sparse.schedules.rules.cuda_elementwise import Elementwise
from tvm_sparse.schedules.rules.cuda_linear import Linear
from tvm_sparse.schedules.rules.cuda_row_reduction import RowReduction
from tvm_sparse.schedules.rules.cuda_short_reduction import ShortReduction
from tvm_sparse.schedules.rules.cuda_window import WindowRows

needs_gcc = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")


def tensor(shape: Sequence[int], name: str) -> te.Tensor:
    """A placeholder with 64-bit extents, as Relax has them."""
    return te.placeholder([tirx.const(extent, "int64") for extent in shape], name=name)


def data(shape: Sequence[int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def result(rule: ScheduleRule, tensors: list[te.Tensor], arrays: list[np.ndarray], folder: Path) -> np.ndarray:
    """What a rule's kernel for the last tensor, which is called "out", computes from the others."""
    func = schedule_func(te.create_prim_func(tensors), GPU, [rule])
    out = np.full([int(e) for e in tensors[-1].shape], np.nan, np.float32)
    named = {tensor.name: array for tensor, array in zip(tensors, arrays, strict=False)}
    return run(func, GPU, {**named, "out": out}, shared_bytes=1 << 17, folder=folder)


def finished(y: te.Tensor, bias: te.Tensor | None = None) -> te.Tensor:
    """relu(y + bias), the bias along axis 1."""

    def value(*at: Any) -> Any:
        total = y(*at) if bias is None else y(*at) + bias[at[1]]
        return te.max(total, tirx.const(0, "float32"))

    return te.compute(y.shape, value, name="out")


def windows(x: np.ndarray, kernel: int, stride: int, padding: int, fill: float) -> np.ndarray:
    """(n, c, p, q, r, s) windows of the padded input."""
    around = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    padded = np.pad(x.astype(np.float64), around, constant_values=fill)
    seen = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(2, 3))
    return seen[:, :, ::stride, ::stride]


@needs_gcc
@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding", "multiplier"),
    [
        ((1, 5, 14, 14), 3, 1, 1, 1),
        ((2, 3, 15, 13), 3, 2, 1, 1),
        ((1, 4, 9, 10), 5, 1, 2, 2),
        ((2, 3, 17, 17), 3, 2, 0, 1),
    ],
)
@pytest.mark.parametrize("enough", [1, cuda_window.ENOUGH_THREADS], ids=["several rows", "one row"])
def test_depthwise(
    shape: Any, kernel: int, stride: int, padding: int, multiplier: int, enough: int, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(cuda_window, "ENOUGH_THREADS", enough)
    c = shape[1]
    x, w = te.placeholder(shape, name="x"), te.placeholder((c * multiplier, 1, kernel, kernel), name="w")
    b = te.placeholder((c * multiplier,), name="b")
    y = topi.nn.group_conv2d_nchw(x, w, stride, padding, 1, c)
    arrays = [data([int(e) for e in t.shape], seed) for seed, t in enumerate((x, w, b))]
    found = result(WindowRows(), [x, w, b, finished(y, b)], arrays, tmp_path)
    seen = np.repeat(windows(arrays[0], kernel, stride, padding, 0.0), multiplier, axis=1)
    expected = np.einsum("ncpqrs,crs->ncpq", seen, arrays[1][:, 0].astype(np.float64)) + arrays[2][:, None, None]
    np.testing.assert_allclose(found, np.maximum(expected, 0), rtol=1e-5, atol=1e-5)


@needs_gcc
@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding"),
    [((1, 3, 14, 14), 3, 1, 1), ((2, 2, 11, 13), 3, 2, 0), ((1, 3, 8, 8), 2, 2, 0), ((2, 3, 17, 17), 3, 2, 1)],
)
@pytest.mark.parametrize("enough", [1, cuda_window.ENOUGH_THREADS], ids=["several rows", "one row"])
def test_max_pooling(
    shape: Any, kernel: int, stride: int, padding: int, enough: int, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(cuda_window, "ENOUGH_THREADS", enough)
    x = te.placeholder(shape, name="x")
    y = topi.nn.pool2d(x, (kernel,) * 2, (stride,) * 2, (1, 1), (padding,) * 4, "max")
    array = data(shape, 3)
    found = result(WindowRows(), [x, finished(y)], [array], tmp_path)
    expected = windows(array, kernel, stride, padding, -np.inf).max((4, 5))
    np.testing.assert_allclose(found, np.maximum(expected, 0), rtol=1e-6)


@needs_gcc
def test_a_window_without_padding_and_epilogue(tmp_path: Path) -> None:
    x = te.placeholder((2, 3, 9, 9), name="x")
    r, s = te.reduce_axis((0, 2), name="r"), te.reduce_axis((0, 2), name="s")
    out = te.compute((2, 3, 8, 8), lambda n, c, p, q: te.max(x[n, c, p + r, q + s], axis=[r, s]), name="out")
    array = data((2, 3, 9, 9), 4)
    found = result(WindowRows(), [x, out], [array], tmp_path)
    np.testing.assert_array_equal(found, windows(array, 2, 1, 0, 0.0).max((4, 5)).astype(np.float32))


@needs_gcc
@pytest.mark.parametrize(
    "rows, k, columns", [(1, 512, 40), (1, 1024, 1000), (3, 256, 64), (32, 256, 72), (16, 512, 32), (48, 64, 32)]
)
def test_linear(rows: int, k: int, columns: int, tmp_path: Path) -> None:
    x, w, b = tensor((rows, k), "x"), tensor((k, columns), "w"), tensor((columns,), "b")
    arrays = [data((rows, k), 5), data((k, columns), 6) / np.float32(np.sqrt(k)), data((columns,), 7)]
    found = result(Linear(), [x, w, b, finished(topi.nn.matmul(x, w), b)], arrays, tmp_path)
    expected = arrays[0].astype(np.float64) @ arrays[1].astype(np.float64) + arrays[2]
    np.testing.assert_allclose(found, np.maximum(expected, 0), rtol=1e-5, atol=1e-5)


@needs_gcc
def test_a_short_reduction_is_one_kernel(tmp_path: Path) -> None:
    x = tensor((2, 6, 5, 4), "x")
    squares = te.compute(x.shape, lambda *at: x(*at) * x(*at), name="squares")
    tap = te.reduce_axis((tirx.const(0, "int64"), tirx.const(3, "int64")), name="tap")
    total = te.compute([2, 4, 5, 4], lambda n, c, h, w: te.sum(squares[n, c + tap, h, w], axis=tap), name="total")
    array = data((2, 6, 5, 4), 9)
    found = result(ShortReduction(), [x, finished(total)], [array], tmp_path)
    expected = sum(array[:, at : at + 4].astype(np.float64) ** 2 for at in range(3))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@needs_gcc
@pytest.mark.parametrize("enough", [1, cuda_elementwise.ENOUGH_THREADS], ids=["several", "one"])
@pytest.mark.parametrize("columns", [8, 7])
def test_elementwise(columns: int, enough: int, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(cuda_elementwise, "ENOUGH_THREADS", enough)
    x, b = tensor((2, 4, 5, columns), "x"), tensor((4,), "b")
    scaled = te.compute(x.shape, lambda n, c, h, w: x[n, c, h, w] * b[c], name="scaled")
    arrays = [data((2, 4, 5, columns), 10), data((4,), 11)]
    found = result(Elementwise(), [x, b, finished(scaled)], arrays, tmp_path)
    np.testing.assert_array_equal(found, np.maximum(arrays[0] * arrays[1][:, None, None], 0))


@needs_gcc
@pytest.mark.parametrize("enough", [1, cuda_elementwise.ENOUGH_THREADS], ids=["several", "one"])
def test_concat(enough: int, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(cuda_elementwise, "ENOUGH_THREADS", enough)
    x, y = tensor((2, 3, 4, 4), "x"), tensor((2, 5, 4, 4), "y")
    arrays = [data((2, 3, 4, 4), 12), data((2, 5, 4, 4), 13)]
    found = result(Elementwise(), [x, y, finished(topi.concatenate((x, y), 1))], arrays, tmp_path)
    np.testing.assert_array_equal(found, np.maximum(np.concatenate(arrays, 1), 0))


def test_what_the_rules_leave_to_others() -> None:
    x = tensor((2, 40), "x")
    softmax = te.create_prim_func([x, topi.nn.softmax(x)])
    relu = te.create_prim_func([x, topi.nn.relu(x)])
    for rule in (WindowRows(), Linear(), RowReduction(), ShortReduction(), Elementwise()):
        assert rule.apply(softmax, GPU, False) is None, rule
        assert (rule.apply(relu, GPU, False) is None) is not isinstance(rule, Elementwise), rule
    odd = te.create_prim_func([x, w := tensor((40, 10), "w"), topi.nn.matmul(x, w)])
    assert Linear().apply(odd, GPU, False) is None


@needs_gcc
@pytest.mark.parametrize("shape", [(2, 5, 7, 7), (1, 6, 13, 9), (3, 2, 5, 5)])
def test_global_average(shape: Any, tmp_path: Path) -> None:
    x = tensor(shape, "x")
    y = topi.divide(topi.sum(x, (2, 3), keepdims=True), tirx.const(shape[2] * shape[3], "float32"))
    array = data(shape, 8)
    found = result(RowReduction(), [x, finished(y)], [array], tmp_path)
    expected = np.maximum(array.astype(np.float64).mean((2, 3), keepdims=True), 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
