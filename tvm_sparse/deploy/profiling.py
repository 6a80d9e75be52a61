"""How long each kernel of a library takes on its device, measured in a run of its own."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm_sparse.cuda.graph_timer import GraphTimer
from tvm_sparse.cuda.limits import Limits
from tvm_sparse.deploy import tensors
from tvm_sparse.deploy.environment import collect_env
from tvm_sparse.deploy.runtime import Network
from tvm_sparse.deploy.timing import bench

_LEAST_US = 300.0  # of calls that are timed together
_MOST_CALLS = 50
_REPEATS = 5
_RUNS, _WARM_UPS = 21, 2  # of a network on a CPU
_BUILTINS = ("vm.", "ffi.", "runtime.")


@dataclass(frozen=True)
class KernelTime:
    """One function of the network, in the order of the calls.

    Attributes
    ----------
    name
        Of the layer, for a convolution that a template runs; else what the function computes.
    template, decision, reason
        From the compile report; empty for what is no convolution of ours.
    time_us
        On a GPU the median of a call among equal ones, which find its inputs in a cache that holds them; on a CPU the
        median of its calls in whole runs of the network.
    share
        Of the sum of all.
    bytes
        Inputs, constants and outputs, each once.
    flop
        Of the nonzeros; None where nobody counted.
    bound_share
        The least time that device memory and arithmetic allow, as a share of the time; None where they are not known.
    """

    name: str
    function: str
    template: str
    decision: str
    reason: str
    time_us: float
    share: float
    bytes: int
    flop: int | None
    bound_share: float | None


@dataclass(frozen=True)
class Profile:
    """The kernels of a network; `call_us` is the median of a whole call beside it, and `sum_us` what they add up to."""

    model: str
    device: str
    threads: int | None
    call_us: float
    sum_us: float
    kernels: tuple[KernelTime, ...]
    environment: dict[str, Any]

    def to_json(self) -> str:
        """As one JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2)


def profile(network: Network, *, batch: int | None = None, seed: int = 0) -> Profile:
    """Time every kernel: on a GPU by itself, in a CUDA graph that repeats it; on a CPU in its place in the network.

    Parameters
    ----------
    batch
        Of the random inputs, for a library that serves several; by default the largest.
    seed
        Of the random inputs.

    Raises
    ------
    InputError
        The batch is not served.
    """
    arguments = network.to_device(tensors.in_order(network.inputs, (), network.random_inputs(seed, batch)))
    on_gpu = network.device != "cpu"
    call_us = bench(network, batch=batch, seed=seed, repeats=20).median_us
    seen = _by_themselves(network, arguments) if on_gpu else _in_place(network, arguments)
    sum_us = sum(time_us for _, _, time_us in seen)
    sizes = network.metadata.batch
    limits = Limits.of_gpu(network.index) if on_gpu else None
    return Profile(
        model=network.metadata.model,
        device=network.device,
        threads=network.threads,
        call_us=call_us,
        sum_us=sum_us,
        kernels=_described(seen, sum_us, network.report(sizes.largest if sizes and batch is None else batch), limits),
        environment=collect_env(),
    )


def _by_themselves(network: Network, arguments: Sequence[Any]) -> list[tuple[str, int, float]]:
    """Every kernel of a GPU's network, its bytes and microseconds, each repeated before it runs."""
    timer = _gpu_timer(network.index)
    seen: list[tuple[str, int, float]] = []

    def instrument(function: Any, name: str, before: bool, _result: Any, *values: Any) -> int:
        if before and not name.startswith(_BUILTINS) and not network.capturing():
            seen.append((name, _bytes(values), timer(lambda: function(*values))))
        return 0  # and run it

    network.run_instrumented(arguments, instrument)
    return seen


def _in_place(network: Network, arguments: Sequence[Any]) -> list[tuple[str, int, float]]:
    """Every kernel of a CPU's network, its bytes and microseconds, in the state its predecessor leaves caches in."""
    seen: list[tuple[str, int, float]] = []
    began_ns = 0

    def instrument(_function: Any, name: str, before: bool, _result: Any, *values: Any) -> int:
        nonlocal began_ns
        if name.startswith(_BUILTINS):
            return 0
        if before:
            began_ns = time.perf_counter_ns()
        else:
            seen.append((name, _bytes(values), (time.perf_counter_ns() - began_ns) / 1000))
        return 0

    network.run_instrumented(arguments, instrument, runs=_WARM_UPS + _RUNS)
    kernels = len(seen) // (_WARM_UPS + _RUNS)
    counted = seen[_WARM_UPS * kernels :]
    return [
        (name, moved, statistics.median(time_us for _, _, time_us in counted[place::kernels]))
        for place, (name, moved, _) in enumerate(counted[:kernels])
    ]


def _described(
    seen: Sequence[tuple[str, int, float]], sum_us: float, layers: Sequence[dict[str, Any]], limits: Limits | None
) -> tuple[KernelTime, ...]:
    """Each kernel with what the compile report says of its layer; layers of one function come in their order.

    So do convolutions without a template, whose functions TVM named, where there is one function for each.
    """
    waiting: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for layer in layers:
        waiting[layer.get("function", "")].append(layer)
    unnamed = [function for function, _, _ in seen if function not in waiting and "conv" in function]
    as_many = len(unnamed) == len(waiting[""])
    described = []
    for function, moved, time_us in seen:
        own = waiting["" if as_many and function in unnamed else function]
        layer = own.pop(0) if own else {}
        flop = layer.get("flop")
        bound_us = limits.bound_us(moved, flop or 0) if limits else None
        described.append(
            KernelTime(
                name=layer.get("name", readable(function)),
                function=function,
                template=layer.get("template", ""),
                decision=layer.get("decision", ""),
                reason=layer.get("reason", ""),
                time_us=time_us,
                share=time_us / sum_us,
                bytes=moved,
                flop=flop,
                bound_share=bound_us / time_us if bound_us else None,
            )
        )
    return tuple(described)


def readable(function: str) -> str:
    """What a function that TVM named computes: fused_conv2d_add1_relu3 is "conv2d add relu"."""
    words = re.sub(r"_batch_\d+$", "", function.removeprefix("fused_").replace("tir_", "")).split("_")
    return " ".join(re.sub(r"(?<=[a-z])\d+$", "", word) for word in words)


def _bytes(values: Sequence[Any]) -> int:
    sized = [value for value in values if hasattr(value, "shape") and hasattr(value, "dtype")]
    return sum(math.prod(value.shape) * value.dtype.itemsize for value in sized)


def _gpu_timer(index: int) -> Callable[[Callable[[], Any]], float]:
    timer = GraphTimer(index)

    def time_us(call: Callable[[], Any]) -> float:
        timer.warm(call)
        (once,) = timer.calls_us(lambda _: call(), calls=4, repeats=1)
        calls = min(_MOST_CALLS, max(1, math.ceil(_LEAST_US / once)))
        return statistics.median(timer.calls_us(lambda _: call(), calls=calls, repeats=_REPEATS))

    return time_us
