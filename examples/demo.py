"""The main job, start to end: two pruned networks compiled, checked, exported, reloaded with the runtime alone, timed.

python examples/demo.py [--threads 2] [--output demo-out] [--rounds 15]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

DIGITS = ROOT / "examples" / "digits"

#: Runs in a process of its own, to show that a library needs the TVM runtime only.
RUN_ALONE = """
import sys, numpy as np, tvm_sparse
library, inputs, outputs, threads = sys.argv[1:]
with np.load(inputs) as arrays:
    y = tvm_sparse.load(library, threads=int(threads))(*(arrays[name] for name in arrays.files))
np.savez(outputs, y=y)
loaded = open("/proc/self/maps").read()
assert "tvm" not in sys.modules and "libtvm_compiler" not in loaded, "the compiler was loaded"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=ROOT / "demo-out")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved timing rounds")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    threads = min(options.threads, len(os.sched_getaffinity(0)))
    digits(options.output, threads)
    resnet50(options.output, threads, options.rounds)
    folder = os.path.relpath(options.output)
    print(f"\nAll of it took {time.perf_counter() - begin:.0f} s. The libraries are in {folder}.")


def digits(folder: Path, threads: int) -> None:
    """Accuracy of a small trained network: dense, pruned, and as compiled."""
    import tvm_sparse

    print(
        "1. A small CNN trained on scikit-learn's digits, its convolutions pruned to 95 % (examples/digits/train.py)\n"
    )
    stated = json.loads((DIGITS / "digits.json").read_text())
    with np.load(DIGITS / "digits_test.npz") as test:
        images, labels = test["images"], test["labels"]
    network = tvm_sparse.compile(DIGITS / "digits_pruned95.onnx", batch=len(images), threads=threads)
    network.export(folder / "digits.so")
    logits = run_alone(folder, "digits", {"images": images}, threads)
    show_layers(network)
    accuracy = float((logits.argmax(axis=1) == labels).mean())
    print(f"\naccuracy on {len(images)} held-out images")
    print(f"  before pruning           {stated['dense_accuracy']:.2%}")
    print(f"  pruned and fine-tuned    {stated['pruned_accuracy']:.2%}")
    print(f"  compiled, runtime only   {accuracy:.2%}")
    if abs(accuracy - stated["pruned_accuracy"]) > 0.5 / len(images):
        raise SystemExit("the compiled network does not reach the accuracy of the pruned one")


def resnet50(folder: Path, threads: int, rounds: int) -> None:
    """ResNet-50 at 90 %: verified, timed against onnxruntime on the same weights, sizes compared."""
    from benchmarks.networks import compile_and_time
    from examples.networks import build
    from tvm_sparse.deploy.tensors import random_inputs

    print("\n2. ResNet-50, seeded weights, every convolution but the first pruned to 90 % (examples/networks)\n")
    model = build("resnet50", sparsity=0.9)
    result, network = compile_and_time(
        "resnet50", model, folder, sparsity=0.9, threads=threads, rounds=rounds, tell=lambda text: print(f"   {text}")
    )
    print()
    show_layers(network)
    inputs = random_inputs(network.metadata.inputs)
    alone = run_alone(folder, "resnet50-auto", inputs, threads)
    same = np.array_equal(alone, network(*inputs.values()))
    print(f"\nrelative error against onnxruntime            {result.relative_error:.1e}")
    print(f"reloaded with the TVM runtime only, same output {same}")
    print(f"\nmilliseconds per image, batch 1, {threads} threads, median of {rounds} interleaved rounds")
    print(f"  onnxruntime, dense        {result.onnxruntime_ms:8.2f}")
    print(f"  tvm-sparse, all dense     {result.dense_ms:8.2f}   {result.dense_vs_onnxruntime:.2f}x onnxruntime")
    print(f"  tvm-sparse, sparse        {result.sparse_ms:8.2f}   {result.sparse_vs_onnxruntime:.2f}x onnxruntime")
    dense_mb, library_mb = result.dense_model_bytes / 1e6, result.library_bytes / 1e6
    print(f"\nthe dense ONNX file has {dense_mb:.1f} MB, the library {library_mb:.1f} MB")
    (folder / "resnet50.json").write_text(json.dumps(asdict(result), indent=1) + "\n")
    if not same:
        raise SystemExit("the reloaded library computes another output")


def show_layers(network: Any) -> None:
    """One line per convolution."""
    layers = network.report()
    width = max(len(layer.name) for layer in layers)
    print(f"{'layer':{width}}  {'zeros':>6}  {'runs':6}  {'workload'}")
    for layer in layers:
        print(f"{layer.name:{width}}  {layer.sparsity:6.1%}  {layer.decision:6}  {layer.workload}   ({layer.reason})")


def run_alone(folder: Path, name: str, inputs: dict[str, np.ndarray], threads: int) -> np.ndarray:
    """Run a library in a fresh process that loads the TVM runtime only."""
    np.savez(folder / f"{name}-in.npz", **inputs)
    paths = [str(folder / f"{name}{end}") for end in (".so", "-in.npz", "-out.npz")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", RUN_ALONE, *paths, str(threads)], check=True, env=environment)
    with np.load(paths[-1]) as outputs:
        return np.asarray(outputs["y"])


if __name__ == "__main__":
    main()
