"""A network with a log beside one without: what is measured, and the tables of a record."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import tvm_sparse
from benchmarks.markdown import NOTHING
from benchmarks.records import record as write_record
from benchmarks.tuned_networks import measure, tuned_networks
from tests.network.onnx_models import conv, model, tensor, weights
from tests.tuning.making import record
from tvm_sparse.prune import magnitude_mask
from tvm_sparse.targets import make_target
from tvm_sparse.tuning.devices import cpu_site
from tvm_sparse.tuning.log_files import LogWriter, make_log
from tvm_sparse.workload import ConvWorkload


def test_layers_by_the_log_are_timed_in_both(tmp_path: Path) -> None:
    weight = weights(16, 16, 3, 3)
    pruned = np.where(magnitude_mask(weight, 0.9), weight, np.float32(0))
    graph = model([conv("only", "x", "w", "y", pads=[1] * 4)], {"w": pruned}, [tensor("x", (1, 16, 12, 12))])
    (layer,) = tvm_sparse.compile(graph, threads=1, log=None, sparse="always", verify=False).report()
    make_log(tmp_path / "log")
    knobs = {**layer.knobs, "format": "sliced_ell:8", "rows": 2}
    assert knobs != layer.knobs
    workload = ConvWorkload(1, 16, 12, 12, 16, 3, 3, padding=(1, 1, 1, 1))
    found = record(site=cpu_site(make_target("llvm", threads=1)), workload=workload, density=0.1, knobs=knobs)
    LogWriter(tmp_path / "log").append(found)
    row = measure("small", graph, str(tmp_path / "log"), tmp_path, threads=1, rounds=3, tell=lambda text: None)
    assert row["changed"] == 1 and row["layers"][0]["layer"] == "only"
    assert min(row["default_ms"], row["tuned_ms"], row["gain"], row["layers"][0]["tuned_us"]) > 0

    path = tmp_path / "record.json"
    assert tuned_networks(path) == NOTHING
    row = {**row, "default_ms": 2.0, "tuned_ms": 1.0, "gain": 2.0,
           "layers": [{"layer": "only", "default_us": 8.0, "tuned_us": 10.0}]}  # fmt: skip
    write_record(path, [row], log="shipped")
    text = tuned_networks(path)
    assert (
        "| small | 2.00 ms | 1.00 ms | 2.00x | 1 |" in text and "| small | only | 8.00 us | 10.0 us | 0.80x |" in text
    )
