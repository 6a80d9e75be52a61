"""`tvm-sparse bench`: how long one call of a compiled library takes."""

from __future__ import annotations

from typing import Annotated

import typer

from tvm_sparse.cli.options import JsonFile, Library, Threads, check_json_file


def command(
    library: Library,
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls.")] = 100,
    warmup: Annotated[int, typer.Option(min=0, help="Calls before the timed ones.")] = 10,
    threads: Threads = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random input.")] = 0,
    json: JsonFile = None,
) -> None:
    """Time single calls on random input: median, 95th percentile, least and mean, in µs."""
    check_json_file(json)
    import tvm_sparse
    from tvm_sparse.cli.output import show_report, write_json

    network = tvm_sparse.load(library, threads=threads)
    result = tvm_sparse.bench(network, repeats=repeats, warmup=warmup, seed=seed)
    if write_json(result, json):
        return
    show_report(result)
