"""Measurements of this driver as records of a tuning log: where `tvm-sparse tune` starts from, what `compile` may take.

The driver measures layers without bias, activation or residual, so its records count for layers like those.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.gpu_layers.cases import Case
from benchmarks.gpu_layers.store import Store
from benchmarks.gpu_layers.weights import weight_of
from tvm_sparse.tuning.devices import gpu_site
from tvm_sparse.tuning.records import Record, Rows

PACKAGES = ("tvm-sparse", "apache-tvm", "apache-tvm-ffi")


def tuning_records(store: Store, keep: int) -> Iterator[Record]:
    """The `keep` fastest right variants of every case with a random mask that are no dense ones."""
    for case in store.cases:
        if case["mask"] != "random":
            continue
        timed = [row for row in case["variants"] if row.get("time") and not _dense(row) and not row.get("overlap")]
        run = store.runs[case["run"]]
        yield from (_record(case, row, run) for row in sorted(timed, key=lambda row: row["time"]["median_us"])[:keep])


def _dense(row: Mapping[str, Any]) -> bool:
    return row["template"] == "cuda_dense" or str(row["knobs"].get("format", "")).startswith("column_vector")


def _record(row: Mapping[str, Any], variant: Mapping[str, Any], run: Mapping[str, Any]) -> Record:
    case = Case(**{name: row[name] for name in ("layer", "batch", "sparsity", "dtype")})
    weight, time, device = weight_of(case, run["seed"], None), variant["time"], run["device"]
    packages = run["environment"]["packages"]
    return Record(
        site=gpu_site(device["name"], device["capability"]),
        workload=case.workload(),
        density=round(row["nnz"] / weight.size, 6),
        rows=Rows.of(weight),
        template=variant["template"],
        knobs=dict(variant["knobs"]),
        kind="sparse",
        outcome="ok",
        time_us=round(time["median_us"], 3),
        spread_us=round(time["p90_us"] - time["p10_us"], 3),
        repeats=time["samples"],
        error=variant["error"],
        layer=row["layer"],
        source="seed" if variant["default"] else "transfer",
        timer=time["method"],
        versions={name: packages[name] for name in PACKAGES if packages.get(name)},
        date=f"{run['date']}T00:00:00Z",
    )
