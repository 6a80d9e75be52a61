"""Tune the layers of the example networks without the networks: from a list of their shapes, on drawn nonzeros.

    python -m benchmarks.tune_networks list                       # writes the list; needs onnx and a few minutes
    python -m benchmarks.tune_networks tune --target cuda --batch 1 32 --sparsity 0.9 0.95 --minutes 8 --log LOG

A GPU machine so needs neither onnx nor the time to build and read ten models. The example networks' filters are pruned
by magnitude out of normal draws, so that their nonzeros are spread like those drawn here.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_name("tuning_layers.json")
#: Networks whose linear layers are worth pruning.
LINEAR = ("alexnet", "vgg16")
#: Trials of a layer in turn: few, where there are many layers and little time.
ROUND = 6


def write_list() -> None:
    """The distinct layers of the example networks at batch 1, with how often each network has them.

    Merged as on a GPU, and those that a CPU has besides; "by_phases" are those that a GPU runs without their stride.
    """
    from examples.networks import NAMES, build
    from tvm_sparse.network.importer import import_model
    from tvm_sparse.network.plan import planned_layers
    from tvm_sparse.network.tunable import tunable_layers
    from tvm_sparse.targets import make_target

    cpu, gpu = make_target("llvm"), make_target("cuda", arch="sm_90")
    rows = []
    for name in NAMES:
        linear_sparsity = 0.9 if name in LINEAR else 0.0
        model = import_model(build(name, batch=1, sparsity=0.9, seed=0, linear_sparsity=linear_sparsity))
        planned = planned_layers(model, "auto", gpu, everywhere=True)
        by_phases = {layer.name for layer in planned if layer.strided is not None}
        merged = [layer for layer in tunable_layers([model], gpu) if layer.name not in by_phases]
        found = {(layer.workload, layer.density < 0.5): layer for layer in [*tunable_layers([model], cpu), *merged]}
        for layer in found.values():
            pruned = layer.density < 0.5
            row = {"network": name, "layer": layer.name, "count": layer.count, "pruned": pruned}
            marked = {"by_phases": True} if layer.name in by_phases else {}
            rows.append({**row, **marked, **asdict(layer.workload)})
    lines = ",\n".join(json.dumps(row) for row in rows)
    FILE.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{FILE}: {len(rows)} layers")


def layers(
    patterns: Sequence[str],
    batches: Iterable[int],
    sparsities: Sequence[float],
    target: Any,
    seed: int = 0,
    dtype: str = "float32",
) -> list[Any]:
    """Layers to tune for a target, drawn at every sparsity; those that the networks keep dense once a batch.

    `dtype` is what they store their input, filter and output in.
    """
    from tvm_sparse.tuning.layers import distinct

    rows = [
        row
        for row in json.loads(FILE.read_text(encoding="utf-8"))
        if any(fnmatchcase(f"{row['network']}:{row['layer']}", pattern) for pattern in patterns)
    ]
    return distinct(
        layer
        for batch in batches
        for row in rows
        for layer in _drawn(row, batch, sparsities if row["pruned"] else (0.0,), target, seed, dtype)
    )


def _drawn(
    row: dict[str, Any], batch: int, sparsities: Iterable[float], target: Any, seed: int, dtype: str
) -> Iterator[Any]:
    from tvm_sparse.network.phases import without_stride
    from tvm_sparse.network.subsample import subsampled
    from tvm_sparse.tuning.layers import Layer
    from tvm_sparse.tuning.records import workload_from

    about = ("network", "layer", "count", "pruned", "by_phases")
    listed = workload_from({name: row[name] for name in row if name not in about})
    by_phases = target.kind.name == "cuda" and row.get("by_phases", False)
    for sparsity in sparsities:
        workload = subsampled(replace(listed, n=batch, dtype=dtype), target)
        rng = np.random.default_rng(seed)
        weight = rng.standard_normal(workload.filter_shape, np.float32) / np.sqrt(np.prod(workload.filter_shape[1:]))
        weight *= rng.random(workload.filter_shape, np.float32) >= sparsity
        left = without_stride(workload, weight) if by_phases else None
        untuned = "sparse" if row["pruned"] else "dense"
        for form, drawn in ((workload, weight), *([left] if left is not None else [])):
            yield Layer(f"{row['network']}:{row['layer']}", form, drawn.astype(dtype), untuned, row["count"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="write the list of layers")
    tune = commands.add_parser("tune", help="tune the layers of the list")
    tune.add_argument("--only", nargs="+", default=["*"], metavar="NETWORK:LAYER", help="patterns; by default all")
    tune.add_argument("--target", choices=("llvm", "cuda"), default="llvm")
    tune.add_argument("--threads", type=int, help="CPU threads")
    tune.add_argument("--batch", type=int, nargs="+", default=[1])
    tune.add_argument("--sparsity", type=float, nargs="+", default=[0.9])
    tune.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="of the storage")
    tune.add_argument("--minutes", type=float, help="stop after so long")
    tune.add_argument("--trials-per-layer", type=int, help="stop after so many trials of each layer")
    tune.add_argument("--search", choices=("guided", "random"), default="guided")
    tune.add_argument("--seed", type=int, default=0, help="of the search; the filters stay the same")
    tune.add_argument("--log", type=Path, required=True)
    options = parser.parse_args()
    if options.command == "list":
        write_list()
        return 0
    from tvm_sparse.cli.tune import show_tuned
    from tvm_sparse.cli.tune_progress import tuning_progress
    from tvm_sparse.tuning.devices import setting_for
    from tvm_sparse.tuning.trials import Budget
    from tvm_sparse.tuning.tuner import tune as tune_layers

    chosen = {"strategy": options.search, "batch": ROUND, "seed": options.seed}
    setting = replace(setting_for(options.target, threads=options.threads), **chosen)
    wanted = layers(options.only, options.batch, options.sparsity, setting.target, dtype=options.dtype)
    seconds = None if options.minutes is None else 60 * options.minutes
    budget = Budget(per_layer=options.trials_per_layer, seconds=seconds)
    with tuning_progress(options.trials_per_layer, options.minutes) as (begin, told):
        tuned = tune_layers(wanted, setting, budget, options.log, begin=begin, told=told)
    show_tuned(tuned, options.log)
    return 0


if __name__ == "__main__":
    sys.exit(main())
