"""How long one call of a library takes."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm_sparse.deploy import tensors
from tvm_sparse.deploy.environment import collect_env
from tvm_sparse.deploy.runtime import Network
from tvm_sparse.errors import InputError


@dataclass(frozen=True)
class BenchResult:
    """Times of single calls, in microseconds, inputs already on the device; and what they were measured on.

    `batch` is the one asked for, None where none was; `bound` says whether calls were those of `Network.bind`.
    """

    model: str
    device: str
    batch: int | None
    bound: bool
    median_us: float
    p95_us: float
    min_us: float
    mean_us: float
    count: int
    threads: int | None
    environment: dict[str, Any]

    def to_json(self) -> str:
        """As one JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2)


def bench(
    network: Network,
    *,
    inputs: Mapping[str, Any] | None = None,
    batch: int | None = None,
    bound: bool = False,
    seed: int = 0,
    warmup: int = 10,
    repeats: int = 100,
    min_time_s: float = 0.0,
) -> BenchResult:
    """Time single calls, each from the moment it starts until its outputs are there.

    Parameters
    ----------
    inputs
        Arrays by input name; by default random ones.
    batch
        Of the random inputs, for a library that serves several; by default the largest. One between two sizes compiled
        for takes as long as the larger.
    bound
        Whether to time a bound call, on a GPU; see `Network.bind`.
    seed
        Of the random inputs.
    warmup
        Calls before the timed ones.
    repeats, min_time_s
        Timed calls: at least so many, and for at least so long.

    Raises
    ------
    InputError
        The inputs do not fit, the batch is not served, a count is out of range, or a CPU's calls shall be bound.
    LibraryError
        A library without a CUDA graph shall be bound.
    """
    if repeats < 1 or warmup < 0:
        raise InputError(f"bench needs repeats >= 1 and warmup >= 0, not {repeats} and {warmup}")
    if inputs is not None and batch is not None:
        raise InputError("bench takes inputs, or the batch of random ones, not both")
    arrays = network.random_inputs(seed, batch) if inputs is None else inputs
    arguments = network.to_device(tensors.in_order(network.inputs, (), arrays))
    call = network.bind(*arguments) if bound else partial(network.invoke, arguments, network.new_outputs(arguments))
    for _ in range(warmup):
        call()
    network.synchronize()
    times_us: list[float] = []
    end = time.perf_counter() + min_time_s
    while len(times_us) < repeats or time.perf_counter() < end:
        start_ns = time.perf_counter_ns()
        call()
        network.synchronize()
        times_us.append((time.perf_counter_ns() - start_ns) / 1000)
    times_us.sort()
    return BenchResult(
        model=network.metadata.model,
        device=network.device,
        batch=batch,
        bound=bound,
        median_us=statistics.median(times_us),
        p95_us=times_us[max(0, -(-95 * len(times_us) // 100) - 1)],
        min_us=times_us[0],
        mean_us=statistics.fmean(times_us),
        count=len(times_us),
        threads=network.threads,
        environment=collect_env(),
    )
