"""What a user may say of batch sizes, and what it stands for."""

from __future__ import annotations

import pytest

from tvm_sparse.deploy.buckets import buckets_of
from tvm_sparse.errors import InputError


@pytest.mark.parametrize(
    ("batch", "buckets"),
    [
        (None, ()),
        (3, (3,)),
        ("3", (3,)),
        ("1-32", (1, 2, 4, 8, 16, 32)),
        ("1-6", (1, 2, 4, 6)),
        ("3-20", (3, 4, 8, 16, 20)),
        ("5 - 7", (5, 7)),
        ("4-4", (4,)),
        ("1,8,32", (1, 8, 32)),
        ("8, 1,8", (1, 8)),
        ([32, 1], (1, 32)),
        ((7,), (7,)),
    ],
)
def test_what_is_understood(batch, buckets):
    assert buckets_of(batch) == buckets


@pytest.mark.parametrize(
    "batch", ["", "two", "1..4", "-1", "1-", "1-2-3", "1,,2", "0-4", "0,1", "0", [], [0], [1.5], 2.0, True]
)
def test_anything_else_is_refused(batch):
    with pytest.raises(InputError, match="give a number, a range such as 1-32, or sizes such as 1,8,32"):
        buckets_of(batch)


def test_a_range_must_not_end_before_it_begins():
    with pytest.raises(InputError, match="batch 4-2: the range ends before it begins"):
        buckets_of("4-2")
