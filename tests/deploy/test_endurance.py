"""Ten thousand calls leave nothing behind, and two networks in two threads keep out of each other's way."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tvm_sparse
from tests.network.onnx_models import conv, model, tensor, weights

CALLS = 10_000
#: What memory may grow by between the first thousand calls and the last: 100 bytes a call.
MOST_BYTES = 1_000_000
X = weights(3, 4, 8, 8)


def convolution(seed: int) -> Any:
    """x (n, 4, 8, 8) -> y (n, 8, 8, 8)."""
    nodes = [conv("only", "x", "w", "y", pads=[1] * 4)]
    return model(nodes, {"w": weights(8, 4, 3, 3, seed=seed)}, [tensor("x", ("n", 4, 8, 8))])


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two of the same shapes with other weights, for 1 to 4 images."""
    folder = tmp_path_factory.mktemp("endurance")
    for seed in (0, 1):
        network = tvm_sparse.compile(convolution(seed), batch="1,4", threads=1, verify=False)
        network.export(folder / f"{seed}.so")
    return folder / "0.so", folder / "1.so"


def growth_bytes(call: Callable[[], object]) -> int:
    """What the process grows by in the last nine tenths of the calls."""
    for count in range(CALLS):
        call()
        if count == CALLS // 10:
            before = resident_bytes()
    return resident_bytes() - before


def resident_bytes() -> int:
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # or it would keep what was freed
        libc.malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def refused(network: Any) -> None:
    with pytest.raises(tvm_sparse.errors.InputError):
        network(X[:, :3])


CALLERS: dict[str, Callable[[Any], Callable[[], object]]] = {
    "numpy": lambda network: lambda: network(X),
    "padded and by name": lambda network: lambda: network.run({"x": X[:2]}),
    "misaligned": lambda network: lambda: network(X.ravel()[1:257].reshape(1, 4, 8, 8)),
    "torch": lambda network: lambda: network(pytest.importorskip("torch").from_numpy(X)),
    "invoke": lambda network: partial(network.invoke, network.to_device([X])),
    "refused": lambda network: lambda: refused(network),
}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc here")
@pytest.mark.parametrize("caller", CALLERS)
def test_calls_leak_nothing(libraries: tuple[Path, Path], caller: str) -> None:
    assert growth_bytes(CALLERS[caller](tvm_sparse.load(libraries[0], threads=1))) < MOST_BYTES


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc here")
def test_a_stream_over_two_instances_leaks_nothing(libraries: tuple[Path, Path]) -> None:
    with tvm_sparse.serve(libraries[0], devices=["cpu", "cpu"]) as networks:
        results = networks.map(X for _ in range(2 * CALLS))
        assert growth_bytes(lambda: next(results)) < MOST_BYTES


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc here")
def test_a_leak_is_seen(libraries: tuple[Path, Path]) -> None:
    """Of two pages a call, so that none of it fits into what earlier tests left free."""
    network, kept = tvm_sparse.load(libraries[0], threads=1), []
    assert growth_bytes(lambda: (network(X), kept.append(bytes(8192)))) > MOST_BYTES


@pytest.mark.parametrize("threads", [1, None])
def test_two_networks_in_two_threads(libraries: tuple[Path, Path], threads: int | None) -> None:
    """Each result is that of the same network alone, to the last bit."""
    networks = [tvm_sparse.load(path, threads=threads) for path in libraries]
    inputs = [weights(1 + seed % 4, 4, 8, 8, seed=seed) for seed in range(8)]
    expected = [[network(x) for x in inputs] for network in networks]
    assert not np.allclose(expected[0][0], expected[1][0])

    def call(index: int) -> None:
        for round in range(100):
            for x, y in zip(inputs, expected[index], strict=True):
                assert np.array_equal(networks[index](x), y), (index, round, len(x))

    with ThreadPoolExecutor(4) as callers:
        list(callers.map(call, (0, 1, 0, 1)))
