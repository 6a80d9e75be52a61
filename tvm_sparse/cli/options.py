"""Options that several commands share, and how their text is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tvm_sparse.errors import InputError
from tvm_sparse.files import check_writable

Model = Annotated[
    Path, typer.Argument(metavar="MODEL", show_default=False, help="An .onnx or a torch.export .pt2 file.")
]
Library = Annotated[Path, typer.Argument(metavar="NET.so", show_default=False, help="A library that `compile` wrote.")]
Batch = Annotated[
    int | None, typer.Option("--batch", min=1, show_default=False, help="Pin the batch size of every input.")
]
Batches = Annotated[
    str | None,
    typer.Option(
        "--batch",
        metavar="N|1-32|1,8,32",
        show_default=False,
        help="Batch size; a range (powers of two and both ends) or sizes make one library for all up to the largest.",
    ),
]
OneBatch = Annotated[
    int | None,
    typer.Option("--batch", min=1, show_default=False, help="Images of a call, of a library that serves several."),
]
Shapes = Annotated[
    list[str] | None,
    typer.Option("--shape", metavar="NAME=1x3x224x224", show_default=False, help="Pin an input's shape; repeatable."),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, show_default=False, help="CPU threads (default: all this process may use)."),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="FILE", show_default=False, help="Write the result as JSON too; - prints it instead."
    ),
]


def parse_shapes(texts: Sequence[str] | None) -> dict[str, tuple[int, ...]] | None:
    """`NAME=1x3x224x224` options as {name: shape}; None where there are none.

    Raises
    ------
    typer.BadParameter
        A text is not of that form, names a dimension below 1, or repeats a name.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts or ():
        name, _, dimensions = text.rpartition("=")
        sizes = dimensions.replace(",", "x").split("x")
        if not name or name in shapes or not all(size.isdecimal() and int(size) > 0 for size in sizes):
            raise typer.BadParameter(f"{text!r}: give each input once, as NAME=1x3x224x224", param_hint="--shape")
        shapes[name] = tuple(map(int, sizes))
    return shapes or None


def parse_batch(text: str | None) -> int | str | None:
    """`--batch` as the Python calls take it: a number as such, a range or sizes as they are written.

    Raises
    ------
    typer.BadParameter
        It is none of these.
    """
    from tvm_sparse.deploy.buckets import buckets_of

    try:
        buckets_of(text)
    except InputError as error:
        raise typer.BadParameter(str(error), param_hint="--batch") from error
    return int(text) if text is not None and text.strip().isdecimal() else text


def check_json_file(destination: Path | None) -> None:
    """Refuse a `--json` file that cannot be written, before the long work."""
    if destination is not None and str(destination) != "-":
        check_writable(destination)


def parse_list(text: str | None) -> tuple[str, ...] | None:
    """A comma-separated option as a tuple; None where it is absent."""
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text is not None else None
