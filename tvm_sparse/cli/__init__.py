"""The `tvm-sparse` command line: typer commands, thin over the Python calls."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on `arguments` (default: those of the process) and return its exit code."""
    from tvm_sparse.cli.app import run

    return run(arguments)
