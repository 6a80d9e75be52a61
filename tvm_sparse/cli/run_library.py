"""`tvm-sparse run`: one call of a compiled library on arrays from a file, or on random ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tvm_sparse.cli.options import Library, OneBatch, Threads
from tvm_sparse.errors import InputError
from tvm_sparse.files import check_writable, replacing

if TYPE_CHECKING:
    import numpy as np


def command(
    library: Library,
    input_file: Annotated[
        Path | None, typer.Option("--input", metavar="x.npz", show_default=False, help="Input arrays by their names.")
    ] = None,
    random_seed: Annotated[
        int | None, typer.Option("--random", metavar="SEED", min=0, show_default=False, help="Draw the inputs instead.")
    ] = None,
    batch: OneBatch = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="y.npz", show_default=False, help="Where to write the output arrays."),
    ] = None,
    threads: Threads = None,
) -> None:
    """Run a library once; prints name, shape, dtype and range of every output."""
    if (input_file is None) == (random_seed is None):
        raise typer.BadParameter("give either --input x.npz or --random SEED", param_hint="--input")
    if batch is not None and input_file is not None:
        raise typer.BadParameter("belongs to --random; the arrays of --input have a batch", param_hint="--batch")
    if output is not None:
        check_writable(output)
    import numpy as np

    import tvm_sparse
    from tvm_sparse.cli.output import show_table

    arrays = read_arrays(input_file) if input_file is not None else None
    network = tvm_sparse.load(library, threads=threads)
    returned = network(**(network.random_inputs(random_seed or 0, batch) if arrays is None else arrays))
    outputs = returned if isinstance(returned, tuple) else (returned,)
    results = {spec.name: np.asarray(array) for spec, array in zip(network.outputs, outputs, strict=True)}
    if output is not None:
        with replacing(output) as path:
            write_arrays(path, results)
    show_table([_row(name, array) for name, array in results.items()])


def _row(name: str, array: np.ndarray) -> dict[str, Any]:
    statistics = {key: float(getattr(array, key)()) if array.size else math.nan for key in ("min", "max", "mean")}
    return {"output": name, "shape": array.shape, "dtype": str(array.dtype), **statistics}


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an .npz file; unlike numpy.savez under any name, `file` included."""
    import zipfile

    import numpy as np

    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by their names.

    Raises
    ------
    InputError
        The file is missing, damaged, or not an .npz of plain arrays.
    """
    import zipfile
    import zlib

    import numpy as np

    if path.is_file() and not zipfile.is_zipfile(path):
        raise InputError(f"{path}: not an .npz file; write one with numpy.savez(file, NAME=array)")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: cannot read arrays: {getattr(error, 'strerror', None) or error}") from error
