"""One scheduled function a rule, as text, for a fixed CPU and a fixed GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tvm import te, tirx, topi
from tvm.target import Target

from tvm_sparse.schedules.rules import rules_for, schedule_func
from tvm_sparse.tvm_support import cuda_target

TARGET = Target({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v3", "num-cores": 2})


def elementwise() -> tirx.PrimFunc:
    x, y = (te.placeholder((1, 64, 56, 56), name=n) for n in "xy")
    return te.create_prim_func([x, y, topi.nn.relu(topi.add(x, y))])


def depthwise() -> tirx.PrimFunc:
    x, f, b = te.placeholder((1, 64, 14, 14)), te.placeholder((64, 1, 3, 3)), te.placeholder((1, 64, 1, 1))
    y = topi.nn.group_conv2d_nchw(x, f, (2, 2), (1, 1, 1, 1), (1, 1), 64)
    return te.create_prim_func([x, f, b, topi.nn.relu(topi.add(y, b))])


def max_pool() -> tirx.PrimFunc:
    x = te.placeholder((1, 64, 28, 28), name="x")
    return te.create_prim_func([x, topi.nn.pool2d(x, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), "max")])


def linear() -> tirx.PrimFunc:
    x, w, b = te.placeholder((1, 512)), te.placeholder((512, 1000)), te.placeholder((1000,))
    return te.create_prim_func([x, w, b, topi.add(topi.nn.matmul(x, w), b)])


def linear_batch() -> tirx.PrimFunc:
    x, w = te.placeholder((8, 512), name="x"), te.placeholder((512, 256), name="w")
    return te.create_prim_func([x, w, topi.nn.matmul(x, w)])


def global_average() -> tirx.PrimFunc:
    x = te.placeholder((1, 512, 7, 7), name="x")
    return te.create_prim_func([x, topi.nn.global_pool(x, "avg")])


def softmax() -> tirx.PrimFunc:
    x = te.placeholder((4, 1000), name="x")
    return te.create_prim_func([x, topi.nn.softmax(x)])


CASES = [elementwise, depthwise, max_pool, linear, linear_batch, global_average, softmax]


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_golden(make: Callable[[], tirx.PrimFunc], golden: Callable[[str, str], None]) -> None:
    func = schedule_func(make(), TARGET, rules_for(TARGET))
    golden(f"rules/{make.__name__}.txt", func.script())


def gpu_linear() -> tirx.PrimFunc:
    x, w, b = (te.placeholder([tirx.const(e, "int64") for e in shape]) for shape in ((4, 512), (512, 1000), (1000,)))
    return te.create_prim_func([x, w, b, topi.add(topi.nn.matmul(x, w), b)])


def gpu_global_average() -> tirx.PrimFunc:
    x = te.placeholder([tirx.const(e, "int64") for e in (1, 512, 7, 7)], name="x")
    return te.create_prim_func([x, topi.nn.global_pool(x, "avg")])


@pytest.mark.parametrize("make", [depthwise, max_pool, gpu_linear, gpu_global_average], ids=lambda make: make.__name__)
def test_golden_on_a_gpu(make: Callable[[], tirx.PrimFunc], golden: Callable[[str, str], None]) -> None:
    target = cuda_target("sm_90")
    func = schedule_func(make(), target, rules_for(target))
    golden(f"rules/cuda_{make.__name__.removeprefix('gpu_')}.txt", func.script())
