"""How many images a second a library serves on one device, two, and so on."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tvm_sparse.deploy.environment import collect_env
from tvm_sparse.deploy.parallel import DataParallel
from tvm_sparse.deploy.runtime import Network
from tvm_sparse.errors import InputError

_WINDOWS = 5
_CALLS_AHEAD = 4  # before waiting for the GPU


@dataclass(frozen=True)
class DeviceRate:
    """Images a second on some devices, each a median of several windows of time.

    `host_per_s` counts arrays that come from and go to host memory, `device_per_s` inputs that already lie on their
    device and outputs that stay there. A speed-up is over the first device alone.
    """

    devices: tuple[str, ...]
    host_per_s: float
    host_speed_up: float
    device_per_s: float
    device_speed_up: float


@dataclass(frozen=True)
class Throughput:
    """The rates on one device, two, four and so on up to all; `batch` is the images of a call."""

    model: str
    batch: int
    rates: tuple[DeviceRate, ...]
    environment: dict[str, Any] = field(default_factory=collect_env)


def throughput(
    path: str | Path,
    *,
    devices: Sequence[str] | None = None,
    threads: int | None = None,
    batch: int | None = None,
    seconds: float = 2.0,
    seed: int = 0,
) -> Throughput:
    """Measure on the first device, the first two, four, … and all.

    Parameters
    ----------
    devices, threads
        As for `DataParallel`.
    batch
        Images of a call, of a library that serves several batch sizes; by default the largest.
    seconds
        Length of each measurement.

    Raises
    ------
    LibraryError, InputError
        As for `DataParallel`; or `seconds` is no time.
    """
    if seconds <= 0:
        raise InputError(f"a throughput cannot be measured in {seconds} seconds")
    with DataParallel(path, devices=devices, threads=threads) as networks:
        metadata, chosen = networks.metadata, networks.devices
    images = batch or max((spec.shape[0] for spec in metadata.inputs if spec.shape), default=1)
    rates: list[DeviceRate] = []
    for count in sorted({*itertools.takewhile(lambda n: n < len(chosen), (2**k for k in range(16))), len(chosen)}):
        with DataParallel(path, devices=chosen[:count], threads=threads) as networks:
            host = images * _host_rate(networks, batch, seconds, seed)
            device = images * _device_rate(networks, batch, seconds, seed)
        first = rates[0] if rates else None
        rates.append(
            DeviceRate(
                devices=chosen[:count],
                host_per_s=host,
                host_speed_up=host / first.host_per_s if first else 1.0,
                device_per_s=device,
                device_speed_up=device / first.device_per_s if first else 1.0,
            )
        )
    return Throughput(metadata.model, images, tuple(rates))


def _host_rate(networks: DataParallel, batch: int | None, seconds: float, seed: int) -> float:
    """Calls a second of `map` over requests in host memory."""
    results = networks.map(itertools.repeat(networks.random_inputs(seed, batch)))
    for _ in range(8 * len(networks.devices)):  # the first ones are not counted
        next(results)
    return _median_rate(lambda: next(results), seconds, 1)


def _device_rate(networks: DataParallel, batch: int | None, seconds: float, seed: int) -> float:
    """Calls a second, of all networks together, on inputs that lie on the device."""

    def run(network: Network) -> float:
        arguments = network.to_device(list(network.random_inputs(seed, batch).values()))
        results = network.new_outputs(arguments)

        def calls() -> None:
            for _ in range(_CALLS_AHEAD):
                network.invoke(arguments, results)
            network.synchronize()

        calls()
        return _median_rate(calls, seconds, _CALLS_AHEAD)

    return sum(networks.on_each(run))


def _median_rate(work: Callable[[], object], seconds: float, count: int) -> float:
    """How often a second `work` does `count` things: the median of windows."""
    rates = []
    for _ in range(_WINDOWS):
        done, start = 0, time.perf_counter()
        while (taken := time.perf_counter() - start) < seconds / _WINDOWS:
            work()
            done += count
        rates.append(done / taken)
    return statistics.median(rates)
