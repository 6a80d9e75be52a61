"""Start-up is a promise: neither the import nor `--help` may load a compiler, a framework or a model format."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

LIMIT_S = 0.3
HEAVY = ("tvm", "tvm_ffi", "torch", "onnx", "onnxruntime", "onnxslim", "numpy")
STARTS = {
    "import": "import tvm_sparse",
    "help": "import sys; sys.argv = ['tvm-sparse', '--help']; from tvm_sparse.cli import main; code = main()",
    "help of a command": "import sys; from tvm_sparse.cli import main; code = main(['compile', '--help'])",
}


@pytest.mark.parametrize("code", STARTS.values(), ids=STARTS.keys())
def test_start_is_quick(code: str) -> None:
    """One of fifteen whole processes at most, the interpreter's own start included.

    Counted in processor time, which on an idle machine is the time a person waits: the start reads a few files and is
    otherwise all Python. The clock on the wall would measure what else runs on the test machine, which also shares its
    caches: then some starts take half as long again.
    """

    def used_s() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    seconds: list[float] = []
    while len(seconds) < 15 and not (seconds and seconds[-1] < LIMIT_S):
        before = used_s()
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        seconds.append(used_s() - before)
    assert min(seconds) < LIMIT_S


@pytest.mark.parametrize("code", STARTS.values(), ids=STARTS.keys())
def test_start_loads_nothing_heavy(code: str) -> None:
    report = f"{code}\nimport sys\nprint('loaded:', *(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", report], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_the_check_for_heavy_modules_can_fail() -> None:
    code = "import tvm_sparse.formats, sys; print('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"


def test_public_names_are_listed_and_unknown_ones_refused() -> None:
    import tvm_sparse

    assert set(tvm_sparse.__all__) <= set(dir(tvm_sparse))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = tvm_sparse.nonsense


def test_every_public_name_resolves() -> None:
    import tvm_sparse

    for name in tvm_sparse.__all__:
        assert getattr(tvm_sparse, name) is not None
