"""One case on a device: our library beside torch, its outputs against onnxruntime, and how it behaves for long."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_networks.cases import Case
from benchmarks.gpu_networks.profiles import kept
from tvm_sparse.oracle import relative_error
from tvm_sparse.peers.candidates import Compiling

Record = dict[str, Any]
#: onnxruntime is the reference up to this batch; a larger one takes it too long, and torch in float64 is held against.
LARGEST_REFERENCE = 32
CALLS, THREAD_CALLS = 10_000, 200


@dataclass(frozen=True)
class Conditions:
    """How cases are measured."""

    seed: int
    rounds: int
    compiling: Compiling
    endurance: bool
    threads: int
    weights: Path | None = None


def measure_case(case: Case, library: Path, conditions: Conditions, tell: Callable[[str], None]) -> Record:
    """Everything about one case, of a library that is compiled."""
    from tvm_sparse.deploy import load, profile
    from tvm_sparse.peers import compare

    free_memory()
    model = case.model(conditions.seed, conditions.weights)
    network = load(library)
    decisions = [str(layer.get("decision", "")) for layer in network.report()]
    record: Record = {
        **asdict(case),
        "library_bytes": library.stat().st_size,
        "layers": {name: decisions.count(name) for name in sorted(set(decisions))},
    }
    found = asdict(
        compare(
            network, model, compiling=conditions.compiling, rounds=conditions.rounds, seed=conditions.seed, tell=tell
        )
    )
    record |= {
        name: _rounded(found[name]) for name in ("rounds", "reference", "relative_error", "ours", "unbound", "peers")
    }
    if case.batch <= LARGEST_REFERENCE:
        record["onnxruntime_error"] = _rounded(onnxruntime_error(network, model, conditions))
    record["profile"] = _rounded(kept(asdict(profile(network, seed=conditions.seed))))
    if conditions.endurance:
        free_memory()
        tell(f"{CALLS} calls")
        record["endurance"] = {
            **leak(network, CALLS),
            "wrong_in_threads": wrong_in_threads(library, conditions.seed, THREAD_CALLS),
        }
    return record


def onnxruntime_error(network: Any, model: Any, conditions: Conditions) -> float:
    """The relative error of our outputs against onnxruntime on the same file and input."""
    from tvm_sparse.network.references import OnnxRuntimeReference

    inputs = network.random_inputs(conditions.seed)
    expected = OnnxRuntimeReference(model, conditions.threads)(inputs)
    return max(
        relative_error(ours, theirs) for ours, theirs in zip(network.run(inputs).values(), expected, strict=True)
    )


def leak(network: Any, calls: int) -> Record:
    """Bytes by which a loop of calls makes the process and the device grow, after calls that fill the pools.

    Every second one is bound, on a GPU.
    """
    arguments = network.to_device(list(network.random_inputs().values()))
    ways: list[Callable[[], Any]] = [partial(network.invoke, arguments, network.new_outputs(arguments))]
    if network.device != "cpu":
        ways.append(network.bind(*arguments))

    def run(count: int) -> tuple[int, int]:
        for number in range(count):
            ways[number % len(ways)]()
        network.synchronize()
        return _resident_bytes(), _device_bytes(network.device)

    before, after = run(calls // 10), run(calls)
    grown = [max(0, late - early) for early, late in zip(before, after, strict=True)]
    return {"calls": calls, "host_growth_bytes": grown[0], "device_growth_bytes": grown[1]}


def wrong_in_threads(library: Path, seed: int, calls: int) -> int:
    """How many calls of two instances in two threads at once give other bytes than the same call alone."""
    from tvm_sparse.deploy import load

    networks = [load(library) for _ in range(2)]
    inputs = [network.random_inputs(seed + index) for index, network in enumerate(networks)]
    alone = [network.run(given) for network, given in zip(networks, inputs, strict=True)]
    wrong = [0, 0]

    def run(index: int) -> None:
        for _ in range(calls):
            found = networks[index].run(inputs[index])
            wrong[index] += any(not np.array_equal(found[name], alone[index][name]) for name in found)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(wrong)


def device_lost() -> bool:
    """Whether the GPU takes no more work, as after an illegal access."""
    import torch

    if not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def free_memory() -> None:
    """Give back what torch keeps for graphs that are gone."""
    gc.collect()
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def _device_bytes(device: str) -> int:
    if device == "cpu":
        return 0
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return int(total - free)


def _rounded(value: Any) -> Any:
    """Five figures of every float: more were never measured."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
