"""How a driver with commands ends: with the command's exit code, or one line that says what is wrong."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tvm_sparse.errors import TvmSparseError


def run_command(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> int:
    """Call what the parser's commands set as `call`, with the options; its exit code."""
    options = parser.parse_args(arguments)
    try:
        return int(options.call(options))
    except TvmSparseError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
