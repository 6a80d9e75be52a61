"""`tvm-sparse prune`: one-shot magnitude pruning of an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tvm_sparse.cli.options import JsonFlag, parse_list
from tvm_sparse.files import check_writable


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", show_default=False, help="The ONNX file to prune.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT.onnx", show_default=False, help="Where to write.")
    ],
    sparsity: Annotated[
        float, typer.Option(min=0.0, max=1.0, show_default=False, help="Fraction of weights to set to zero.")
    ],
    pattern: Annotated[
        str, typer.Option(metavar="unstructured|vector:V", help="Prune single weights, or V output channels together.")
    ] = "unstructured",
    globally: Annotated[
        bool, typer.Option("--global", help="One threshold for the whole network, not one a layer.")
    ] = False,
    skip: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", show_default=False, help="Names or patterns of layers to leave dense, separated by commas."
        ),
    ] = None,
    linear: Annotated[bool, typer.Option("--linear", help="Prune linear layers too.")] = False,
    json: JsonFlag = False,
) -> None:
    """Set the smallest weights of every convolution to zero and write the network again."""
    check_writable(output)
    from tvm_sparse.cli.output import show_pairs, show_records, size, to_json
    from tvm_sparse.prune import prune_file

    report = prune_file(
        model,
        output,
        sparsity=sparsity,
        pattern=pattern,
        scope="global" if globally else "layer",
        skip=parse_list(skip) or (),
        linear=linear,
    )
    if json:
        print(to_json(report))
        return
    show_records(report.convs)
    show_pairs(
        {
            "weights": report.weights,
            "sparsity before": report.before,
            "sparsity after": report.after,
            "written": f"{output}, {size(output.stat().st_size)}",
        }
    )
