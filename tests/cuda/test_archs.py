"""Which archs exist and what runs where."""

from __future__ import annotations

import pytest

from tvm_sparse.cuda.archs import parse_archs, runs_on
from tvm_sparse.errors import CompileError


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("sm_90", ("sm_90",)),
        ("sm_90, sm_80,", ("sm_80", "sm_90")),
        (["sm_100", "sm_90", "sm_90"], ("sm_90", "sm_100")),
        ("sm_90a,sm_90", ("sm_90", "sm_90a")),
    ],
)
def test_parse_archs_sorts_and_drops_doubles(given, expected):
    assert parse_archs(given) == expected


@pytest.mark.parametrize("given", ["", " , ", "sm_42", "90", "compute_90", "sm_90;rm"])
def test_parse_archs_refuses(given):
    with pytest.raises(CompileError, match="sm_80, sm_86"):
        parse_archs(given)


@pytest.mark.parametrize(
    ("arch", "capability", "expected"),
    [
        ("sm_80", (8, 0), True),
        ("sm_80", (8, 9), True),
        ("sm_86", (8, 0), False),
        ("sm_80", (9, 0), False),
        ("sm_90", (9, 0), True),
        ("sm_90", (10, 0), False),
        ("sm_100", (10, 3), True),
        ("sm_90a", (9, 0), True),
        ("sm_90a", (9, 1), False),
    ],
)
def test_runs_on_follows_the_minor_version_rule(arch, capability, expected):
    assert runs_on(arch, capability) is expected
