"""Records and logs made up for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tvm_sparse.tuning.records import Record, Rows, Site
from tvm_sparse.workload import ConvWorkload, Epilogue

SITE = Site("llvm-avx512", "skylake-avx512", 2)
WORKLOAD = ConvWorkload(1, 64, 14, 14, 32, 3, 3, padding=(1, 1, 1, 1), epilogue=Epilogue(True, False, "relu"))
RECORD = Record(
    site=SITE,
    workload=WORKLOAD,
    density=0.1,
    rows=Rows(57.0, 80, 1, "0123456789ab"),
    template="cpu_vector",
    knobs={"rows": 2, "format": "csr"},
    kind="sparse",
    outcome="ok",
    time_us=40.0,
    spread_us=0.5,
    repeats=7,
    error=1e-7,
    source="guided",
    versions={"apache-tvm": "0.27.0.post1"},
    date="2026-01-01T00:00:00Z",
)


def record(**changes: Any) -> Record:
    """RECORD with some fields changed; without a time where the outcome is not ok."""
    if changes.get("outcome", "ok") != "ok":
        changes = {"time_us": None, "spread_us": None, "error": None, **changes}
    return replace(RECORD, **changes)
