"""Every way a command can end is an exit code and at most one line on stderr."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tvm_sparse import __version__, errors
from tvm_sparse.cli import main
from tvm_sparse.cli.app import EPILOG

from .conftest import Calls

COMMANDS = ["inspect", "prune", "tune", "compile", "run", "verify", "bench", "logs", "collect-env"]
ERRORS = [
    value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.TvmSparseError)
]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tvm-sparse {__version__}\n"


def test_help_names_every_command_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +\w", text, re.MULTILINE) for name in COMMANDS)
    assert "..." not in text.split("Commands:")[1]  # no short help is cut
    assert all(f" {error.exit_code} " in EPILOG.replace("\n", " ") for error in ERRORS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert "Usage: tvm-sparse" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["frobnicate"],
        ["inspect"],
        ["inspect", "net.onnx", "--batch", "0"],
        ["inspect", "net.onnx", "--batch", "two"],
        ["inspect", "net.onnx", "--shape", "1x3"],
        ["inspect", "net.onnx", "--shape", "x=1x-3"],
        ["inspect", "net.onnx", "--shape", "x=1", "--shape", "x=2"],
        ["prune", "net.onnx", "-o", "out.onnx"],
        ["prune", "net.onnx", "-o", "out.onnx", "--sparsity", "1.5"],
        ["compile", "net.onnx"],
        ["compile", "net.onnx", "-o", "net.so", "--target", "riscv"],
        ["compile", "net.onnx", "-o", "net.so", "--sparse", "perhaps"],
        ["run", "net.so"],
        ["run", "net.so", "--input", "x.npz", "--random", "1"],
        ["bench", "net.so", "--repeats", "0"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2(arguments: list[str], calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "Usage: tvm-sparse" in captured.err and "Traceback" not in captured.err
    assert calls.seen == []


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_our_errors_are_one_line_and_their_code(
    error: type[errors.TvmSparseError], calls: Calls, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls.answers["inspect"] = error("net.onnx: node 'conv1'\n has weights with NaN")
    assert main(["inspect", str(model)]) == error.exit_code
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == "error: net.onnx: node 'conv1' has weights with NaN\n"


def test_any_other_exception_is_1_with_a_hint(calls: Calls, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls.answers["inspect"] = ZeroDivisionError("division by zero")
    assert main(["inspect", str(model)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ZeroDivisionError: division by zero") and "--traceback" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(("fault", "code"), [(ZeroDivisionError("x"), 1), (errors.ModelError("x"), 3)])
def test_traceback_on_request(
    fault: Exception, code: int, calls: Calls, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls.answers["inspect"] = fault
    assert main(["--traceback", "inspect", str(model)]) == code
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last)") and err.splitlines()[-1].startswith("error: ")


def test_interrupt_is_130(calls: Calls, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls.answers["inspect"] = KeyboardInterrupt()
    assert main(["inspect", str(model)]) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("lines", [1, 100_000], ids=["at the last flush", "while printing"])
def test_a_reader_that_goes_away_is_quiet(lines: int) -> None:
    code = f"""if True:
        import sys, types
        stub = types.ModuleType("tvm_sparse.deploy.environment")
        stub.collect_env = lambda: {{str(i): i for i in range({lines})}}
        deploy = types.ModuleType("tvm_sparse.deploy")
        sys.modules |= {{"tvm_sparse.deploy": deploy, "tvm_sparse.deploy.environment": stub}}
        from tvm_sparse.cli import main
        sys.stdin.read()
        sys.exit(main(["collect-env"]))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin and process.stdout and process.stderr
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141
