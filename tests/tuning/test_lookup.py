"""The record of a layer: the exact one, else the nearest, never one of another device."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.tuning.making import RECORD, WORKLOAD, record
from tvm_sparse.targets import make_target
from tvm_sparse.tuning.devices import cpu_site, gpu_site
from tvm_sparse.tuning.lookup import KnownKernels, Match
from tvm_sparse.tuning.records import Record, Site
from tvm_sparse.tvm_support import cuda_target
from tvm_sparse.workload import ConvWorkload, Epilogue

DENSE = record(kind="dense", time_us=70.0)


def find(*records: Record, density: float = 0.1, workload: ConvWorkload = WORKLOAD) -> Match | None:
    return KnownKernels(records).find(workload, density)


def test_exact_is_the_fastest_of_each_kind() -> None:
    match = find(record(time_us=50.0), RECORD, DENSE, record(outcome="wrong"), record(density=0.2, time_us=1.0))
    assert match is not None and (match.sparse, match.dense, match.match) == (RECORD, DENSE, "exact")
    assert (match.sparse_us, match.dense_us, match.origin) == (40.0, 70.0, "measured")


def test_the_nearest_density_is_scaled_and_named() -> None:
    match = find(record(density=0.05), record(density=0.4, time_us=5.0), replace(DENSE, density=0.05))
    assert match is not None and match.match == "nearest" and match.sparse is not None
    assert match.sparse.density == 0.05 and match.sparse_us == 80.0 and match.dense_us == 70.0
    assert match.origin == "measured at density 0.05, 0.5 of this layer's"


def test_too_far_or_another_shape_is_nothing() -> None:
    assert find(record(density=0.01)) is None
    assert find(record(workload=replace(WORKLOAD, n=2))) is None
    assert find() is None
    assert find(record(outcome="timeout")) is None


def test_another_epilogue_is_better_than_another_density() -> None:
    plain = replace(WORKLOAD, epilogue=Epilogue())
    match = find(record(workload=plain), record(density=0.05))
    assert match is not None and match.sparse is not None and match.sparse.workload == plain
    assert match.match == "nearest" and match.origin == "measured with epilogue none" and match.sparse_us == 40.0


def test_a_pointwise_layer_is_found_by_its_pixels() -> None:
    square = ConvWorkload(1, 8, 4, 4, 8, 1, 1)
    match = find(record(workload=ConvWorkload(1, 8, 2, 8, 8, 1, 1).flattened()), workload=square)
    assert match is not None and match.match == "exact"


def test_only_records_of_the_target_count() -> None:
    target = make_target("llvm", threads=2)
    here = cpu_site(target)
    own, others = (
        record(site=here),
        [
            record(site=replace(here, threads=3), time_us=1.0),
            record(site=Site("nvidia-h200", "sm_90"), time_us=1.0),
            record(site=replace(here, arch="another"), time_us=1.0),
        ],
    )
    match = KnownKernels.for_target([*others, own], target).find(WORKLOAD, 0.1)
    assert match is not None and match.sparse == own
    match = KnownKernels.for_target(others, target).find(
        WORKLOAD, 0.1
    )  # the same extension, another CPU: better than none
    assert match is not None and match.sparse is not None and match.sparse.site.arch == "another"
    assert KnownKernels.for_target([], target).find(WORKLOAD, 0.1) is None
    gpu = KnownKernels.for_target(others, cuda_target("sm_90")).find(WORKLOAD, 0.1)
    assert gpu is not None and gpu.sparse is not None and gpu.sparse.site.device == "nvidia-h200"
    assert KnownKernels.for_target(others, cuda_target("sm_80")).find(WORKLOAD, 0.1) is None


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("NVIDIA H200", "nvidia-h200"),
        ("NVIDIA GeForce RTX 4090", "nvidia-geforce-rtx-4090"),
        ("Tesla T4", "nvidia-tesla-t4"),
    ],
)
def test_a_gpu_names_its_folder(name: str, folder: str) -> None:
    assert gpu_site(name, "9.0") == Site(folder, "sm_90")
