"""Whole networks on this CPU: sparse and dense through us, dense through onnxruntime, in one process.

python -m benchmarks.networks --networks resnet50,mobilenetv1 --sparsity 0.9 --threads 2 --json FILE
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.records import RESULTS, record


@dataclass(frozen=True)
class NetworkResult:
    """Medians in milliseconds; ratios are medians of interleaved pairs, above 1 where we are faster."""

    network: str
    sparsity: float
    batch: int
    threads: int
    rounds: int
    sparse_ms: float
    dense_ms: float
    onnxruntime_ms: float
    sparse_vs_onnxruntime: float
    dense_vs_onnxruntime: float
    sparse_vs_dense: float
    relative_error: float
    library_bytes: int
    dense_model_bytes: int


def compile_and_time(
    network: str,
    model: Any,
    folder: Path,
    *,
    sparsity: float,
    threads: int,
    rounds: int,
    tell: Callable[[str], None],
) -> tuple[NetworkResult, Any]:
    """Compile an ONNX model sparse and all dense into `folder`, verify it, and time both beside onnxruntime.

    The dense build and onnxruntime take the pruned weights for dense ones, which costs them what unpruned ones do.

    Returns
    -------
    NetworkResult, CompiledNetwork
        The second is the sparse one.
    """
    import tvm_sparse
    from tvm_sparse.peers.interleave import cpu_sampler, interleave, paired_ratio
    from tvm_sparse.peers.source import dense_model

    compiled, paths = {}, {}
    for mode in ("auto", "never"):
        tell(f"{network}: compile, --sparse {mode}")
        compiled[mode] = tvm_sparse.compile(model, sparse=mode, threads=threads)
        paths[mode] = folder / f"{network}-{mode}.so"
        compiled[mode].export(paths[mode])
    sparse, dense = (tvm_sparse.load(paths[mode], threads=threads) for mode in ("auto", "never"))
    inputs = sparse.random_inputs()
    onnxruntime = dense_model(model, sparse.inputs).onnxruntime(inputs, threads)
    tell(f"{network}: {rounds} interleaved rounds on {threads} threads")
    calls = {"sparse": lambda: sparse(**inputs), "dense": lambda: dense(**inputs), "onnxruntime": onnxruntime}
    timings = interleave({name: cpu_sampler(call) for name, call in calls.items()}, rounds)
    result = NetworkResult(
        network=network,
        sparsity=sparsity,
        batch=sparse.inputs[0].shape[0],
        threads=threads,
        rounds=rounds,
        sparse_ms=timings["sparse"].median_us / 1000,
        dense_ms=timings["dense"].median_us / 1000,
        onnxruntime_ms=timings["onnxruntime"].median_us / 1000,
        sparse_vs_onnxruntime=paired_ratio(timings["onnxruntime"], timings["sparse"]),
        dense_vs_onnxruntime=paired_ratio(timings["onnxruntime"], timings["dense"]),
        sparse_vs_dense=paired_ratio(timings["dense"], timings["sparse"]),
        relative_error=max(compiled["auto"].verification.relative_error.values()),
        library_bytes=paths["auto"].stat().st_size,
        dense_model_bytes=model.ByteSize(),
    )
    return result, compiled["auto"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="resnet50,mobilenetv1,googlenet,alexnet,vgg16")
    parser.add_argument("--sparsity", default="0.9", help="one or several, separated by commas")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, default=RESULTS / "cpu_networks.json")
    options = parser.parse_args()

    from examples.networks import build

    results = []
    for name in options.networks.split(","):
        for sparsity in map(float, options.sparsity.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                result, _ = compile_and_time(
                    name,
                    build(name, batch=options.batch, sparsity=sparsity),
                    Path(folder),
                    sparsity=sparsity,
                    threads=options.threads,
                    rounds=options.rounds,
                    tell=lambda text: print(text, file=sys.stderr),
                )
            print(json.dumps(asdict(result)))
            results.append(result)
    record(options.json, [asdict(result) for result in results])


if __name__ == "__main__":
    main()
