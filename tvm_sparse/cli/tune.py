"""`tvm-sparse tune`: measure what runs each layer of a network best, and keep it in a log."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tvm_sparse.cli.compile import Precision, Target
from tvm_sparse.cli.options import Batches, JsonFlag, Shapes, Threads, parse_batch, parse_list, parse_shapes

if TYPE_CHECKING:
    from tvm_sparse.tuning.tuner import TunedLayer


def command(
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL...", show_default=False, help=".onnx or torch.export .pt2 files.")
    ],
    log: Annotated[
        Path, typer.Option("--log", metavar="DIR", show_default=False, help="Where records are kept and added.")
    ],
    target: Annotated[Target, typer.Option(help="This machine's CPU, or its NVIDIA GPUs.")] = Target.llvm,
    arch: Annotated[
        str | None, typer.Option(metavar="sm_90", show_default=False, help="Insist on a GPU architecture.")
    ] = None,
    mcpu: Annotated[
        str | None, typer.Option(metavar="NAME", show_default=False, help="The fleet's CPUs by their LLVM name.")
    ] = None,
    precision: Annotated[Precision, typer.Option(help="What the network will be stored in.")] = Precision.float32,
    trials: Annotated[
        int | None, typer.Option(min=1, show_default=False, help="Stop after so many trials of all layers.")
    ] = None,
    trials_per_layer: Annotated[
        int | None, typer.Option(min=1, show_default=False, help="Stop after so many of each layer (default: 64).")
    ] = None,
    time_budget: Annotated[
        float | None, typer.Option(metavar="MIN", min=0.0, show_default=False, help="Stop after so many minutes.")
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERNS", show_default=False, help="Layers to tune: names or patterns, comma-separated."
        ),
    ] = None,
    batch: Batches = None,
    shape: Shapes = None,
    threads: Threads = None,
    rpc_tracker: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", show_default=False, help="Measure on the servers of a TVM tracker."),
    ] = None,
    rpc_key: Annotated[
        str | None, typer.Option(metavar="KEY", show_default=False, help="The key these servers have.")
    ] = None,
    builders: Annotated[
        int | None, typer.Option(min=1, show_default=False, help="Compilers at a time (default: all CPUs).")
    ] = None,
    search: Annotated[str, typer.Option(metavar="guided|random", help="How to choose trials.")] = "guided",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search.")] = 0,
    json: JsonFlag = False,
) -> None:
    """Search each distinct layer's templates and knobs by measuring; run it again to go on where it was cut off."""
    shapes, sizes = parse_shapes(shape), parse_batch(batch)
    import tvm_sparse
    from tvm_sparse.cli.output import to_json
    from tvm_sparse.cli.tune_progress import tuning_progress
    from tvm_sparse.tuning.tuner import total_gain

    with tuning_progress(trials_per_layer, time_budget) as (begin, progress):
        tuned = tvm_sparse.tune(
            models,
            log=log,
            target=target.value,
            arch=arch,
            mcpu=mcpu,
            precision=precision.value,
            batch=sizes,
            shapes=shapes,
            threads=threads,
            trials=trials,
            trials_per_layer=trials_per_layer,
            time_budget_min=time_budget,
            layers=parse_list(layers) or (),
            rpc_tracker=rpc_tracker,
            rpc_key=rpc_key,
            builders=builders,
            search=search,
            seed=seed,
            begin=begin,
            progress=progress,
        )
    if json:
        print(to_json({"layers": tuned, "gain": total_gain(tuned)}))
        return
    show_tuned(tuned, log)


def show_tuned(tuned: list[TunedLayer], log: Path) -> None:
    """Print a line for each layer and what they come to."""
    from tvm_sparse.cli.output import show_pairs, show_table
    from tvm_sparse.tuning.tuner import total_gain

    show_table([_row(layer) for layer in tuned])
    show_pairs(
        {
            "trials": sum(layer.trials for layer in tuned),
            "failed": sum(sum(layer.failed.values()) for layer in tuned),
            "gain over the defaults, geometric mean": total_gain(tuned),
            "log": str(log),
        }
    )


def _row(layer: TunedLayer) -> dict[str, Any]:
    return {
        "layer": layer.name,
        "workload": layer.workload,
        "density": layer.density,
        "times": layer.count,
        "trials": layer.trials,
        "failed": ", ".join(f"{count} {outcome}" for outcome, count in sorted(layer.failed.items())) or "none",
        "default µs": layer.default_us,
        "dense µs": layer.dense_us,
        "best µs": layer.best_us,
        "gain": layer.gain,
        "kind": layer.kind,
        "template": layer.template,
    }
