"""`tvm-sparse bench`: how long one call of a compiled library takes, alone or beside a dense framework."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from tvm_sparse.cli.options import JsonFile, Library, OneBatch, Threads, check_json_file

_PEERS = ("torch", "onnxruntime")


def command(
    library: Library,
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls.")] = 100,
    warmup: Annotated[int, typer.Option(min=0, help="Calls before the timed ones.")] = 10,
    threads: Threads = None,
    batch: OneBatch = None,
    bound: Annotated[
        bool, typer.Option("--bound", help="On a GPU, calls on tensors that stay the same: one CUDA graph.")
    ] = False,
    profile: Annotated[bool, typer.Option("--profile", help="The time of each kernel instead.")] = False,
    devices: Annotated[
        str | None,
        typer.Option(
            metavar="all|0,1|cpu,cpu",
            show_default=False,
            help="Images a second instead, on one device, two, …, all.",
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to measure each number of devices.")] = 2.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random input.")] = 0,
    compare: Annotated[
        str | None,
        typer.Option(metavar="torch|onnxruntime", show_default=False, help="Time the dense --model in turn with it."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL", show_default=False, help="The .onnx or .pt2 file that the library was made from."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each candidate of a comparison.")] = 11,
    torch_compile: Annotated[
        bool,
        typer.Option("--torch-compile/--no-torch-compile", help="Whether torch is tried through torch.compile too."),
    ] = True,
    json: JsonFile = None,
) -> None:
    """Time single calls on random input: median, 95th percentile, least and mean, in µs.

    With --compare a table follows: torch (on a GPU cuDNN in float32, TF32 and float16, in both layouts, as CUDA graphs)
    or onnxruntime on the same model, sampled in turn with the library. With --devices a table of images a second on the
    first device, the first two, four, … and all, from host memory and with inputs that lie on the device. With
    --profile a table of the kernels in their order: what runs each and why, its time, its share of all, and, on a GPU,
    how close it is to what device memory and arithmetic allow.
    """
    check_json_file(json)
    if (compare is None) != (model is None):
        raise typer.BadParameter("--compare and --model go together", param_hint="--compare")
    if compare is not None and compare not in _PEERS:
        raise typer.BadParameter(f"{compare!r}: choose one of {', '.join(_PEERS)}", param_hint="--compare")
    if bound and (profile or devices is not None):
        raise typer.BadParameter("does not go together with --profile and --devices", param_hint="--bound")
    if profile:
        if compare is not None or devices is not None:
            raise typer.BadParameter("does not go together with --compare and --devices", param_hint="--profile")
        _show_profile(library, threads, batch, seed, json)
        return
    if devices is not None:
        if compare is not None:
            raise typer.BadParameter("does not go together with --compare", param_hint="--devices")
        _show_throughput(library, devices, threads, batch, seconds, seed, json)
        return
    import tvm_sparse
    from tvm_sparse.cli.output import progress, show_report, show_table, write_json

    network = tvm_sparse.load(library, threads=threads)
    result = tvm_sparse.bench(network, repeats=repeats, warmup=warmup, seed=seed, batch=batch, bound=bound)
    comparison = None
    if compare is not None:
        from tvm_sparse import peers

        mode = "default" if torch_compile else None
        with progress() as report:
            comparison = peers.compare(
                network,
                model,
                peer=compare,
                compiling=peers.Compiling(mode),
                rounds=rounds,
                batch=batch,
                seed=seed,
                tell=lambda stage: report(stage, 0.0),
            )
    value = result if comparison is None else {**_fields(result), "comparison": comparison}
    if write_json(value, json):
        return
    show_report(result)
    if comparison is not None:
        print()
        show_table(_rows(comparison))


def _show_throughput(
    library: Path, devices: str, threads: int | None, batch: int | None, seconds: float, seed: int, json: Path | None
) -> None:
    from tvm_sparse import deploy
    from tvm_sparse.cli.output import show_pairs, show_table, write_json

    chosen = None if devices == "all" else [f"cuda:{name}" if name.isdigit() else name for name in devices.split(",")]
    result = deploy.throughput(library, devices=chosen, threads=threads, batch=batch, seconds=seconds, seed=seed)
    if write_json(result, json):
        return
    show_pairs({"model": result.model, "images of a call": result.batch})
    show_table(
        [
            {
                "devices": ", ".join(rate.devices),
                "images/s from host memory": rate.host_per_s,
                "speed-up": rate.host_speed_up,
                "images/s on the device": rate.device_per_s,
                "its speed-up": rate.device_speed_up,
            }
            for rate in result.rates
        ]
    )


def _show_profile(library: Path, threads: int | None, batch: int | None, seed: int, json: Path | None) -> None:
    import tvm_sparse
    from tvm_sparse.cli.output import show_pairs, show_table, write_json

    result = tvm_sparse.profile(tvm_sparse.load(library, threads=threads), batch=batch, seed=seed)
    if write_json(result, json):
        return
    show_table(
        [
            {
                "layer": kernel.name,
                "runs": kernel.decision,
                "template": kernel.template,
                "µs": kernel.time_us,
                "share": f"{kernel.share:.1%}",
                "of the bound": "–" if kernel.bound_share is None else f"{kernel.bound_share:.0%}",
                "why": kernel.reason,
            }
            for kernel in result.kernels
        ]
    )
    show_pairs(
        {"model": result.model, "device": result.device, "kernels, µs": result.sum_us, "call, µs": result.call_us}
    )


def _fields(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def _rows(comparison: Any) -> list[dict[str, Any]]:
    """The library and its peers, one a row; what a row lacks is a dash."""
    ours = [("tvm-sparse", "", "", "", comparison.ours, None, comparison.relative_error, "")]
    if comparison.unbound is not None:
        ours = [(*ours[0][:3], "bound", *ours[0][4:]), ("tvm-sparse", "", "", "", comparison.unbound, None, None, "")]
    theirs = [tuple(_fields(peer).values()) for peer in comparison.peers]
    return [
        {
            "": name,
            "precision": precision,
            "layout": layout,
            "how": how,
            "µs a call": "–" if time is None else time.median_us,
            "latency µs": "–" if time is None else time.latency_us,
            "ours is faster": "–" if speed_up is None else f"{speed_up:.2f}x",
            "error": "–" if error is None else error,
            "note": note,
        }
        for name, precision, layout, how, time, speed_up, error, note in (*ours, *theirs)
    ]
