"""Metadata: an exact round trip, and a clear refusal of everything else."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_sparse.deploy.metadata import FORMAT_VERSION, BatchSizes, Metadata, TensorSpec
from tvm_sparse.errors import LibraryError

SPEC = TensorSpec("input.1", (1, 3, 224, 224), "float32")
EXAMPLE = Metadata(
    model="résnet",
    inputs=(SPEC,),
    outputs=(TensorSpec("scalar", (), "int64"),),
    target="cuda",
    triple="x86_64-linux-gnu",
    mcpu="znver4",
    cpu_features=("avx2",),
    archs=("sm_80", "sm_90"),
    versions={"apache-tvm": "0.27.0.post1"},
    batch=BatchSizes((1, 2, 8), ("input.1",)),
    layers=({"name": "conv1", "sparse": True, "why": None},),
    dense_bytes=100,
    sparse_bytes=20,
    created="2026-01-01T00:00:00+00:00",
)
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner), max_leaves=4)


def test_round_trip():
    assert Metadata.from_json(EXAMPLE.to_json()) == EXAMPLE


def test_a_batch_goes_into_the_smallest_bucket_that_holds_it():
    batch = BatchSizes((1, 4, 6), ("x",))
    assert [batch.bucket(n) for n in range(1, 7)] == [1, 4, 4, 4, 6, 6]
    assert [batch.function(bucket) for bucket in batch.buckets] == ["main_1", "main_4", "main"]


def test_numpy_values_in_layers_become_plain():
    metadata = Metadata("m", (), (), "llvm", layers=({"nnz": np.int64(3), "rows": np.arange(2)},))
    assert Metadata.from_json(metadata.to_json()).layers == ({"nnz": 3, "rows": [0, 1]},)


def test_a_key_of_a_later_release_is_ignored():
    assert Metadata.from_json(json.dumps({**json.loads(EXAMPLE.to_json()), "new": 1})) == EXAMPLE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        (b"\xff\xfe\xfd", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "format None"),
        (json.dumps({"format_version": FORMAT_VERSION + 1}), "format 3, this release reads 2: compile it again"),
    ],
)
def test_what_is_no_metadata_is_refused(text, message):
    with pytest.raises(LibraryError, match=message):
        Metadata.from_json(text)


@pytest.mark.parametrize("key", [key for key in json.loads(EXAMPLE.to_json()) if key != "format_version"])
def test_every_key_is_needed(key):
    values = json.loads(EXAMPLE.to_json())
    del values[key]
    with pytest.raises(LibraryError, match=f"no valid '{key}'"):
        Metadata.from_json(json.dumps(values))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("inputs", [{"name": "x", "shape": [1, -1], "dtype": "float32"}]),
        ("inputs", [{"name": "x", "shape": [1.5], "dtype": "float32"}]),
        ("inputs", [{"shape": [1], "dtype": "float32"}]),
        ("outputs", "none"),
        ("archs", "sm_90"),
        ("cuda_graph", 1),
        ("dense_bytes", True),
        ("sparse_bytes", -1),
        ("layers", [1]),
        ("batch", 3),
        ("batch", {"buckets": [], "inputs": ["x"]}),
        ("batch", {"buckets": [0, 1], "inputs": ["x"]}),
        ("batch", {"buckets": [2, 1], "inputs": ["x"]}),
        ("batch", {"buckets": [1, 1.5], "inputs": ["x"]}),
        ("batch", {"buckets": [1, 2]}),
        ("versions", {"tvm": 1}),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(key, value):
    with pytest.raises(LibraryError, match=f"no valid '{key}'"):
        Metadata.from_json(json.dumps({**json.loads(EXAMPLE.to_json()), key: value}))


def test_an_unknown_target_is_refused():
    with pytest.raises(LibraryError, match="unknown target 'opencl'"):
        Metadata.from_json(json.dumps({**json.loads(EXAMPLE.to_json()), "target": "opencl"}))


@settings(deadline=None)
@given(st.sampled_from(sorted(json.loads(EXAMPLE.to_json()))), JSON)
def test_any_value_gives_metadata_or_a_library_error(key, value):
    try:
        read = Metadata.from_json(json.dumps({**json.loads(EXAMPLE.to_json()), key: value}))
    except LibraryError:
        return
    assert json.loads(read.to_json())[key] == value
