"""The targets a user can ask for, and what is refused."""

from __future__ import annotations

import pytest

from tvm_sparse.errors import CompileError, InputError
from tvm_sparse.targets import make_target

REFUSED = [
    (("metal",), {}, InputError, "metal"),
    (("llvm",), {"arch": "sm_90"}, InputError, "--arch sm_90"),
    (("llvm",), {"mcpu": "no-such-cpu"}, CompileError, "no-such-cpu"),
    (("llvm",), {"threads": 0}, InputError, "0 threads"),
    (("cuda",), {}, CompileError, "--arch"),
    (("cuda",), {"arch": "sm_90", "mcpu": "znver4"}, InputError, "--mcpu znver4"),
    (("cuda",), {"arch": "sm_90", "threads": 2}, InputError, "--threads 2"),
    (("cuda",), {"arch": "sm_1"}, CompileError, "sm_1"),
]


@pytest.mark.parametrize(("args", "options", "error", "names"), REFUSED, ids=[str(row[1] or row[0]) for row in REFUSED])
def test_what_cannot_be_is_refused_by_name(args, options, error, names):
    with pytest.raises(error, match=names) as caught:
        make_target(*args, **options)
    assert "\n" not in str(caught.value)


def test_the_cpu_is_this_one_and_its_threads_are_kept():
    target = make_target("llvm", threads=1)
    assert target.kind.name == "llvm"
    assert int(target.attrs["num-cores"]) == 1
    assert str(target.attrs["mcpu"])


def test_a_gpu_of_several_archs_gets_the_lowest():
    target = make_target("cuda", arch="sm_90,sm_80")
    assert str(target.attrs["arch"]) == "sm_80"
