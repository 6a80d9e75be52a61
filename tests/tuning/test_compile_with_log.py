"""From tuning to a compiled network: its layers run as the log says, and it still computes the same."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

import tvm_sparse
from tvm_sparse.errors import InputError
from tvm_sparse.tuning.log_files import LogWriter, read_log
from tvm_sparse.tuning.records import Record
from tvm_sparse.tuning.selection import best, by_key

MODEL = Path(__file__).parents[2] / "examples" / "digits" / "digits_pruned95.onnx"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    tuned = tvm_sparse.tune(MODEL, log=folder, threads=1, batch=1, trials_per_layer=5, builders=1)
    assert tuned and all(layer.best_us for layer in tuned)
    return folder


def rewritten(log: Path, folder: Path, **changes: object) -> Path:
    """A copy of a log with every record changed."""
    writer = LogWriter(folder)
    for one in read_log(log).records:
        writer.append(replace(one, **changes))  # type: ignore[arg-type]
    return folder


def fastest(log: Path) -> list[Record]:
    return [one for one in map(best, by_key(read_log(log).records).values()) if one is not None]


def test_layers_run_as_measured(log: Path) -> None:
    network = tvm_sparse.compile(MODEL, batch=1, threads=1, log=log)
    direct = [layer for layer in network.report() if layer.tuned]
    assert direct and {layer.tuned for layer in direct} == {"exact"}
    chosen = {(layer.template, str(sorted(layer.knobs.items()))) for layer in direct}
    assert chosen <= {(one.template, str(sorted(one.knobs.items()))) for one in fastest(log)}
    assert all("µs" in layer.reason or "knobs measured" in layer.reason for layer in direct)
    assert network.verification is not None and network.verification.passed
    assert [layer["tuned"] for layer in network.metadata.layers] == [layer.tuned for layer in network.report()]


def test_another_density_and_no_log(log: Path, tmp_path: Path) -> None:
    other = rewritten(log, tmp_path, density=min(1.0, 1.5 * min(one.density for one in read_log(log).records)))
    network = tvm_sparse.compile(MODEL, batch=1, threads=1, log=other, verify=False)
    assert "nearest" in {layer.tuned for layer in network.report()}
    network = tvm_sparse.compile(MODEL, batch=1, threads=1, log=None, verify=False)
    assert {layer.tuned for layer in network.report()} <= {"default", ""}


@pytest.mark.parametrize("changes", [{"template": "unheard"}, {"knobs": {"rows": 1}}, {"knobs": {}}])
def test_records_that_do_not_fit_give_way_to_the_default(log: Path, tmp_path: Path, changes: dict) -> None:
    network = tvm_sparse.compile(MODEL, batch=1, threads=1, log=rewritten(log, tmp_path, **changes), verify=False)
    direct = [layer for layer in network.report() if layer.tuned]
    assert direct and {layer.tuned for layer in direct} == {"default"}
    assert all("do not fit" in layer.reason for layer in direct)


def test_a_damaged_log_warns_and_an_absent_one_is_refused(log: Path, tmp_path: Path) -> None:
    copy = rewritten(log, tmp_path)
    (path,) = copy.rglob("*.jsonl")
    with path.open("a") as stream:
        stream.write('{"format": 1, "dev')
    with pytest.warns(UserWarning, match=f"{path.name}:.*skipped"):
        tvm_sparse.compile(MODEL, batch=1, threads=1, log=copy, verify=False)
    with pytest.raises(InputError, match="no such log"):
        tvm_sparse.compile(MODEL, batch=1, threads=1, log=tmp_path / "absent")


def test_the_shipped_logs_are_whole() -> None:
    from tvm_sparse.tuning.log_files import shipped_logs

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log = read_log(shipped_logs())
    assert log.problems == []
    assert all(record.time_us is not None and math.isfinite(record.time_us) for record in log.records if record.ok)


def test_layer_patterns(log: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--layers nowhere: fits none of the layers"):
        tvm_sparse.tune(MODEL, log=tmp_path, batch=1, layers=["nowhere"], trials_per_layer=1)
