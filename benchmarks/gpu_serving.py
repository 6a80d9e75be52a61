"""Images a second of compiled libraries on one GPU, two, and so on: the record and its table.

    python -m benchmarks.gpu_serving LIBRARY...

Each library first runs a batch on every device and one that is split over all; what differs from the first device's
result is an error, and the exit code then 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.markdown import NOTHING, table, times
from benchmarks.records import RESULTS, environment, record
from tvm_sparse.deploy.parallel import THREADS_PER_GPU

RECORD = RESULTS / "gpu_serving.json"
#: Largest relative difference between devices: the same machine code on the same numbers.
MOST_ERROR = 1e-6
HEAD = ("network", "images of a call", "GPUs", "from host memory", "", "on the devices", "")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu_serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("library", type=Path, nargs="+")
    parser.add_argument("--devices", type=lambda text: text.split(","), help="by default all GPUs")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--json", type=Path, default=RECORD)
    parser.add_argument("--commit", help="the commit, where the tree came without its history")
    options = parser.parse_args(arguments)
    results = [row for path in options.library for row in measure(path, options.devices, options.seconds)]
    commit = options.commit or environment()["commit"]
    record(options.json, results, seconds=options.seconds, measured_at=commit, threads_per_gpu=THREADS_PER_GPU)
    return int(any(row["error"] > MOST_ERROR for row in results))


def measure(path: Path, devices: Sequence[str] | None, seconds: float) -> list[dict[str, Any]]:
    """A row for each number of devices."""
    from tvm_sparse.deploy import throughput

    error = difference(path, devices)
    found = throughput(path, devices=devices, seconds=seconds)
    rows = []
    for rate in found.rates:
        rows.append(
            {
                "model": found.model,
                "batch": found.batch,
                "devices": list(rate.devices),
                "host_per_s": rate.host_per_s,
                "host_speed_up": rate.host_speed_up,
                "device_per_s": rate.device_per_s,
                "device_speed_up": rate.device_speed_up,
                "error": error,
            }
        )
        print(*(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    return rows


def difference(path: Path, devices: Sequence[str] | None) -> float:
    """The largest relative difference of any device's outputs, and of a batch split over all, from the first's."""
    from tvm_sparse.deploy import serve

    with serve(path, devices=devices) as networks:
        inputs = networks.random_inputs(seed=0)
        first, *others = networks.on_each(lambda network: network.run(inputs))
        whole = networks(**{name: _twice(array) for name, array in inputs.items()})
    outputs = [whole] if isinstance(whole, np.ndarray) else list(whole)
    split = dict(zip(first, outputs, strict=True))
    twice = {name: _twice(array) for name, array in first.items()}
    errors = [_relative(one[name], first[name]) for one in others for name in first]
    return max([*errors, *(_relative(split[name], twice[name]) for name in first)])


def serving(path: Path = RECORD) -> str:
    """The table of docs/gpu-networks.md."""
    if not path.exists():
        return NOTHING
    report = json.loads(path.read_text())
    rows = [
        [
            row["model"],
            str(row["batch"]),
            str(len(row["devices"])),
            f"{row['host_per_s']:.0f}/s",
            times(row["host_speed_up"]),
            f"{row['device_per_s']:.0f}/s",
            times(row["device_speed_up"]),
        ]
        for row in report["results"]
    ]
    gpus = (report["environment"]["cuda"] or {}).get("gpus") or ["CPU"]
    error = max(row["error"] for row in report["results"])
    where = f"{gpus[0]}; commit {report['measured_at']}; {report['seconds']:g} s each"
    return f"{table(HEAD, rows)}\n\n{where}; results of the devices differ by {error:.1g} at most."


def _twice(array: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([array, array])


def _relative(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(np.linalg.norm((one - other).astype("float64")) / max(np.linalg.norm(other.astype("float64")), 1e-30))


if __name__ == "__main__":
    sys.exit(main())
