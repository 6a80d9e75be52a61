"""A virtual machine that launches kernel by kernel where TVM's would launch its graph; on the CPU."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm_ffi

from tests.deploy.graph_builtins import SHAPE, expected, export_captured, graph_builtins
from tvm_sparse.deploy import plain_launches
from tvm_sparse.deploy.native import load_runtime, start_machine
from tvm_sparse.deploy.plain_launches import PlainLaunches


@pytest.fixture
def launched() -> Iterator[list[int]]:
    with graph_builtins() as numbers:
        yield numbers


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("captured") / "net.so"
    export_captured(path)
    load_runtime(path, cuda=False)
    return path


def result(machine: Any, x: Any) -> Any:
    out = np.full(SHAPE, np.nan, "float32")
    machine["main"](tvm_ffi.from_dlpack(x), tvm_ffi.from_dlpack(out))
    return out


def test_the_switch_is_that_of_one_machine(library: Path, launched: list[int]) -> None:
    plain, x = PlainLaunches(tvm_ffi), np.random.default_rng(0).random(SHAPE, "float32")
    usual = tvm_ffi.get_global_func(plain_launches._BUILTIN)
    with plain.installed():
        machine = start_machine(tvm_ffi, library, "cpu", 0)
    assert tvm_ffi.get_global_func(plain_launches._BUILTIN).same_as(usual)
    other = start_machine(tvm_ffi, library, "cpu", 0)
    np.testing.assert_allclose(result(machine, x), expected(x), rtol=1e-5)
    assert launched == [0]
    with plain():
        np.testing.assert_allclose(result(machine, 2 * x), expected(2 * x), rtol=1e-5)
        assert launched == [0]
        np.testing.assert_allclose(result(other, x), expected(x), rtol=1e-5)
        assert launched == [0, 0]
    np.testing.assert_allclose(result(machine, x), expected(x), rtol=1e-5)
    assert launched == [0, 0, 0]


def test_threads_that_load_at_once_leave_tvms_own_behind(library: Path, launched: list[int]) -> None:
    usual = tvm_ffi.get_global_func(plain_launches._BUILTIN)
    ready = threading.Barrier(2)

    def start() -> None:
        ready.wait()
        for _ in range(20):
            with PlainLaunches(tvm_ffi).installed():
                time.sleep(0.001)

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tvm_ffi.get_global_func(plain_launches._BUILTIN).same_as(usual)


def test_it_is_off_again_after_an_exception(library: Path, launched: list[int]) -> None:
    plain, x = PlainLaunches(tvm_ffi), np.ones(SHAPE, "float32")
    usual = tvm_ffi.get_global_func(plain_launches._BUILTIN)
    with pytest.raises(RuntimeError, match="no machine"), plain.installed():
        raise RuntimeError("no machine")
    assert tvm_ffi.get_global_func(plain_launches._BUILTIN).same_as(usual)
    with plain.installed():
        machine = start_machine(tvm_ffi, library, "cpu", 0)
    with pytest.raises(ZeroDivisionError), plain():
        raise ZeroDivisionError
    result(machine, x)
    assert launched == [0]
