"""From how many zeros on sparse convolution pays: single layers on this CPU, sparse against our own dense kernel.

    python -m benchmarks.crossover --json FILE        # on all the CPUs this process may use

Both are the template cpu_vector; the dense one takes row blocks of several channels that share every column.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.records import RESULTS, record

SPARSITIES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
#: Layers of ResNet-50 by the shared names of the kernels' notes: c, k, h = w, kernel.
LAYERS = {
    "r50_56_3": (64, 64, 56, 3),
    "r50_28_3": (128, 128, 28, 3),
    "r50_14_3": (256, 256, 14, 3),
    "r50_7_3": (512, 512, 7, 3),
    "r50_56_1r": (256, 64, 56, 1),
    "r50_14_1e": (256, 1024, 14, 1),
}


def measure(name: str, target: Any, rounds: int) -> dict[str, Any]:
    """Times of a layer dense and at every sparsity, interleaved; the speed-up is that of the minima."""
    from tvm_sparse.schedules import template
    from tvm_sparse.workload import ConvWorkload, Epilogue

    c, k, h, kernel = LAYERS[name]
    pad = (kernel // 2,) * 4
    workload = ConvWorkload(
        1, c, h, h, k, kernel, kernel, padding=pad, epilogue=Epilogue(True, False, "relu")
    ).flattened()
    chosen = template("cpu_vector")
    rng = np.random.default_rng(0)
    timers = []
    for sparsity in (0.0, *SPARSITIES):
        weight = rng.standard_normal(workload.filter_shape).astype(np.float32)
        weight[rng.random(weight.shape) < sparsity] = 0
        # The knobs of a sparse layer at every sparsity, so that only the nonzeros differ.
        knobs = chosen.default(workload, 1.0 if sparsity == 0 else 0.1, target)
        timers.append(_timer(chosen.kernel(workload, weight, target, knobs), target, rng))
    best = [float("inf")] * len(timers)
    for _ in range(rounds):
        best = [min(least, timer()) for least, timer in zip(best, timers, strict=True)]
    dense_us, *sparse_us = (seconds * 1e6 for seconds in best)
    return {
        "layer": name,
        "workload": str(workload),
        "dense_us": dense_us,
        "sparse_us": dict(zip(map(str, SPARSITIES), sparse_us, strict=True)),
        "speedup": {str(z): dense_us / us for z, us in zip(SPARSITIES, sparse_us, strict=True)},
    }


def _timer(kernel: Any, target: Any, rng: np.random.Generator) -> Any:
    import tvm

    workload = kernel.workload
    module = tvm.compile(tvm.IRModule({"main": kernel.func.with_attr("global_symbol", "main")}), target=target)
    x = rng.standard_normal((workload.n, workload.c, workload.h, workload.w)).astype(np.float32)
    bias = rng.standard_normal(workload.k).astype(np.float32)
    out = np.empty((workload.n, workload.k, workload.p, workload.q), np.float32)
    arguments = [tvm.runtime.tensor(array) for array in (x, *kernel.constants.arrays, bias, out)]
    evaluator = module.mod.time_evaluator("main", tvm.cpu(), number=3, repeat=2)
    return lambda: min(evaluator(*arguments).results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path, default=RESULTS / "cpu_crossover.json")
    options = parser.parse_args()

    from tvm_sparse.targets import make_target

    threads = len(os.sched_getaffinity(0))
    target = make_target("llvm", threads=threads)
    results = []
    for name in LAYERS:
        results.append(measure(name, target, options.rounds))
        print(json.dumps(results[-1]))
    record(options.json, results, threads=threads, rounds=options.rounds)


if __name__ == "__main__":
    main()
