"""`tvm-sparse compile`: from a model file to one deployable library."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from tvm_sparse.cli.options import Batches, JsonFile, Model, Shapes, Threads, check_json_file, parse_batch, parse_shapes
from tvm_sparse.cli.verify import summarize
from tvm_sparse.files import check_writable


class Target(str, Enum):
    """What the library runs on."""

    llvm = "llvm"
    cuda = "cuda"


class Precision(str, Enum):
    """What activations and filters are stored in."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class Sparse(str, Enum):
    """Which eligible convolutions run on their nonzeros only."""

    auto = "auto"
    always = "always"
    never = "never"


def command(
    model: Model,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="NET.so", show_default=False, help="Where to write.")
    ],
    target: Annotated[Target, typer.Option(help="CPU (through LLVM) or NVIDIA GPU (needs none here).")] = Target.llvm,
    arch: Annotated[
        str | None, typer.Option(metavar="sm_80,sm_90", show_default=False, help="GPU architectures to compile for.")
    ] = None,
    mcpu: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default=False, help="CPU by its LLVM name (default: this machine's)."),
    ] = None,
    sparse: Annotated[
        Sparse, typer.Option(help="Where to use sparse convolution; auto decides per layer and says why.")
    ] = Sparse.auto,
    precision: Annotated[
        Precision, typer.Option(help="What to store activations and filters in; 16 bits on a GPU only.")
    ] = Precision.float32,
    batch: Batches = None,
    shape: Shapes = None,
    threads: Threads = None,
    log: Annotated[
        str, typer.Option(metavar="DIR", help="Tuning log to choose kernels by: a folder or file, `shipped` or `none`.")
    ] = "shipped",
    cuda_graph: Annotated[
        bool, typer.Option("--cuda-graph/--no-cuda-graph", help="Capture a GPU's kernels in one launch.")
    ] = True,
    overlap: Annotated[
        bool | None,
        typer.Option(
            "--overlap/--no-overlap",
            show_default=False,
            help="sm_90 and later: a kernel begins before the one in front ends.",
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare the result with a reference before writing.")
    ] = True,
    json: JsonFile = None,
) -> None:
    """Compile a network into one library file with its weights inside; exit 6 if it differs from the reference."""
    shapes, sizes = parse_shapes(shape), parse_batch(batch)
    check_writable(output)
    check_json_file(json)
    import tvm_sparse
    from tvm_sparse.cli.output import progress, show_pairs, show_records, size, write_json

    with progress() as report_progress:
        network = tvm_sparse.compile(
            model,
            target=target.value,
            arch=arch,
            mcpu=mcpu,
            sparse=sparse.value,
            precision=precision.value,
            batch=sizes,
            shapes=shapes,
            threads=threads,
            log=None if log == "none" else log,
            cuda_graph=cuda_graph,
            overlap=overlap,
            verify=verify,
            progress=report_progress,
        )
        report_progress("exporting", 1.0)
        exported = network.export(output)
    layers = network.report()
    verdict = None if network.verification is None else summarize(network.verification)
    result = {
        "model": model,
        "library": output,
        "target": target.value,
        "precision": precision.value,
        "batch": network.metadata.batch,
        "layers": layers,
        "verification": verdict,
        "dense_bytes": network.dense_bytes,
        "sparse_bytes": network.sparse_bytes,
        "export": exported,
    }
    if write_json(result, json):
        return
    served = network.metadata.batch
    if served is not None:  # the others are in --json
        layers = network.report(served.largest)
    show_records(layers, ["name", "workload", "sparsity", "decision", "template", "tuned", "reason"])
    chosen = sum(layer.decision == "sparse" for layer in layers)
    batches = {} if served is None else {"batches": f"1 to {served.largest}, compiled for {_listed(served.buckets)}"}
    show_pairs(
        {
            **batches,
            "sparse convolutions": f"{chosen} of {len(layers)}",
            "tuned": _tuned([layer.tuned for layer in layers]),
            "weights dense": size(network.dense_bytes),
            "weights as compiled": size(network.sparse_bytes),
            "library": f"{output}, {size(output.stat().st_size)}",
            "verification": "none made" if network.verification is None else network.verification.describe(),
        }
    )


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes))


def _tuned(origins: list[str]) -> str:
    """How many layers run with knobs found for them, found at another density, or set by rule."""
    names = {"exact": "as measured", "nearest": "as measured at the nearest density", "default": "by rule"}
    counted = [f"{origins.count(origin)} {name}" for origin, name in names.items() if origin in origins]
    return ", ".join(counted) or "none"
