"""Whole networks on this CPU, compiled with a tuning log and without, in one process: which layers gain and which lose.

    python -m benchmarks.tuned_networks --networks resnet50 --log LOG --threads 2

Whole calls are interleaved; layers are timed in their place in the network, in turn as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.markdown import NOTHING, microseconds, table, times
from benchmarks.records import RESULTS, record

RECORD = RESULTS / "tuned_networks.json"
HEAD = ("network", "without a log", "with the log", "gain", "layers by the log")
LAYERS = ("network", "layer", "without a log", "with the log", "gain")
#: Layers that a table names for each network.
SHOWN = 12


def measure(
    name: str, model: Any, log: str, folder: Path, *, threads: int, rounds: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Compile a model without a log and with it, and time both: a row, its layers within."""
    import tvm_sparse
    from tvm_sparse.peers.interleave import cpu_sampler, interleave, paired_ratio

    networks, chosen = {}, {}
    for label, records in (("default", None), ("tuned", log)):
        tell(f"{name}: compile, {label}")
        compiled = tvm_sparse.compile(model, threads=threads, log=records, verify=label == "tuned")
        path = folder / f"{name}-{label}.so"
        compiled.export(path)
        networks[label] = tvm_sparse.load(path, threads=threads)
        chosen[label] = {layer.name: (layer.template, layer.knobs) for layer in compiled.report()}
    inputs = networks["tuned"].random_inputs()
    tell(f"{name}: {rounds} interleaved rounds on {threads} threads")
    calls = {label: cpu_sampler(lambda network=network: network(**inputs)) for label, network in networks.items()}
    found = interleave(calls, rounds)
    profiles: dict[str, list[dict[str, float]]] = {label: [] for label in networks}
    for _ in range(max(3, rounds // 5)):
        for label, network in networks.items():
            profiles[label].append({kernel.name: kernel.time_us for kernel in tvm_sparse.profile(network).kernels})
    layers = [
        {
            "layer": layer,
            **{f"{label}_us": statistics.median(one[layer] for one in profiles[label]) for label in networks},
        }
        for layer in chosen["default"]
        if chosen["default"][layer] != chosen["tuned"].get(layer)
        and all(layer in one for label in networks for one in profiles[label])
    ]
    return {
        "network": name,
        "threads": threads,
        "rounds": rounds,
        "default_ms": found["default"].median_us / 1000,
        "tuned_ms": found["tuned"].median_us / 1000,
        "gain": paired_ratio(found["default"], found["tuned"]),
        "changed": len(layers),
        "layers": layers,
    }


def tuned_networks(path: Path = RECORD) -> str:
    """The tables of docs/tuning.md."""
    if not path.exists():
        return NOTHING
    report = json.loads(path.read_text())
    results = report["results"]
    rows = [
        [
            row["network"],
            f"{row['default_ms']:.2f} ms",
            f"{row['tuned_ms']:.2f} ms",
            times(row["gain"]),
            str(row["changed"]),
        ]
        for row in results
    ]
    layers = [line for row in results for line in _most_changed(row)]
    first, environment = results[0], report["environment"]
    words = (
        f"{first['threads']} threads, {environment['cpu']}; commit {environment['commit']}. Medians; the gain is the "
        f"median of {first['rounds']} interleaved pairs. Layers that run otherwise with the log, in their place, the "
        "greatest differences:"
    )
    return "\n\n".join([table(HEAD, rows), words, table(LAYERS, layers)])


def _most_changed(row: dict[str, Any]) -> list[list[str]]:
    ordered = sorted(row["layers"], key=lambda one: -abs(one["default_us"] - one["tuned_us"]))
    return [
        [
            row["network"],
            one["layer"],
            microseconds(one["default_us"]),
            microseconds(one["tuned_us"]),
            times(one["default_us"] / one["tuned_us"]),
        ]
        for one in ordered[:SHOWN]
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.tuned_networks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default="resnet50")
    parser.add_argument("--log", default="shipped")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--json", type=Path, default=RECORD)
    options = parser.parse_args(arguments)

    from examples.networks import build

    results = []
    for name in options.networks.split(","):
        with tempfile.TemporaryDirectory() as folder:
            results.append(
                measure(
                    name,
                    build(name, batch=1, sparsity=0.9),
                    options.log,
                    Path(folder),
                    threads=options.threads,
                    rounds=options.rounds,
                    tell=lambda text: print(text, file=sys.stderr),
                )
            )
        print(json.dumps(results[-1]))
    record(options.json, results, log=options.log)


if __name__ == "__main__":
    main()
