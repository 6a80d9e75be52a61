"""The command group, and the one place where exceptions become exit codes."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from tvm_sparse.cli import bench, collect_env, compile, inspect, logs, prune, run_library, tune, verify
from tvm_sparse.errors import TvmSparseError

INTERRUPTED = 130
BROKEN_PIPE = 141
PROGRAM = "tvm-sparse"
FAULT_CHARACTERS = 300
EPILOG = """Exit codes: 0 done, 1 a fault of our own, 2 wrong usage, 3 model file, 4 input array or argument,
5 target or its compiler, 6 result differs from the reference, 7 compiled library, 8 output cannot be written,
130 interrupted, 141 the reader of our output went away. Results go to stdout, progress and errors to stderr."""

# Plain help (no rich markup) keeps `--help` under 0.1 s.
app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True, epilog=EPILOG)
app.command("inspect", short_help="list a model's convolutions and their sparsity")(inspect.command)
app.command("prune", short_help="set the smallest weights to zero")(prune.command)
app.command("tune", short_help="measure what runs each layer best")(tune.command)
app.command("compile", short_help="compile a model into one library")(compile.command)
app.command("run", short_help="run a library on given or random input")(run_library.command)
app.command("verify", short_help="compare a library with its model")(verify.command)
app.command("bench", short_help="time a library")(bench.command)
app.add_typer(logs.app, name="logs", short_help="list, merge and prune tuning logs")
app.command("collect-env", short_help="print versions, processor, GPUs")(collect_env.command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from tvm_sparse import __version__

        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback(epilog=EPILOG)
def options(
    context: typer.Context,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Compile pruned convolutional networks with direct sparse convolution."""
    context.obj["traceback"] = traceback


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; every way it can end is an exit code."""
    chosen = {"traceback": False}
    try:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                app(args=sys.argv[1:] if arguments is None else list(arguments), prog_name=PROGRAM, obj=chosen)
        finally:
            sys.stdout.flush()
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # typer turns it into a plain exit 1
            return BROKEN_PIPE
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The interpreter flushes stdout once more when it ends; give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        return _explain(error, traceback=chosen["traceback"])
    return 0


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """One line, without the place in our source."""
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr, flush=True)


def _explain(error: Exception, *, traceback: bool) -> int:
    if traceback:
        import traceback as tracebacks

        tracebacks.print_exception(error)
    if isinstance(error, TvmSparseError):
        return _fail(str(error), error.exit_code)
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    text = " ".join(text.split())
    # TVM's messages can hold a whole program.
    text = text if len(text) <= FAULT_CHARACTERS else f"{text[:FAULT_CHARACTERS]}…"
    hint = "" if traceback else f" (a fault of {PROGRAM}; see where with {PROGRAM} --traceback …)"
    return _fail(f"{text}{hint}", 1)


def _fail(message: str, exit_code: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return exit_code
