"""`tvm-sparse tune` hands its options on and prints what comes back."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Calls
from tests.tuning.making import RECORD, record
from tests.tuning.small_session import small_layers
from tvm_sparse.cli import main
from tvm_sparse.cli.tune_progress import MOST_BARS, describe, tuning_progress
from tvm_sparse.tuning import devices
from tvm_sparse.tuning.trials import Tally
from tvm_sparse.tuning.tuner import TunedLayer

LAYER = TunedLayer(
    name="conv1",
    workload="n1 64x14x14 -> 32 3x3",
    density=0.1,
    count=2,
    trials=64,
    failed={"timeout": 1, "wrong": 2},
    default_us=80.0,
    dense_us=90.0,
    best_us=40.0,
    gain=2.0,
    kind="sparse",
    template="cpu_vector",
    knobs={"rows": 2},
)
NOTHING = TunedLayer("conv2", "n1 8x14x14 -> 8 1x1", 0.5, 1, 3, {}, None, None, None, None, None, None)
TUNED = [LAYER, NOTHING]


def test_options_and_table(calls: Calls, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls.answers["tune"] = TUNED
    options = "--target cuda --arch sm_90 --trials 100 --trials-per-layer 20 --time-budget 1.5 --batch 32 --seed 3"
    options += " --layers conv1,layer*.conv2 --rpc-tracker 127.0.0.1:9190 --rpc-key k --builders 4 --search random"
    assert main(["tune", str(model), str(model), "--log", "logs", *options.split()]) == 0
    _, args, kwargs = calls.last
    assert args == ([model, model],)
    assert {name: value for name, value in kwargs.items() if name not in ("begin", "progress")} == {
        "log": Path("logs"),
        "target": "cuda",
        "arch": "sm_90",
        "mcpu": None,
        "batch": 32,
        "shapes": None,
        "threads": None,
        "precision": "float32",
        "trials": 100,
        "trials_per_layer": 20,
        "time_budget_min": 1.5,
        "layers": ("conv1", "layer*.conv2"),
        "rpc_tracker": "127.0.0.1:9190",
        "rpc_key": "k",
        "builders": 4,
        "search": "random",
        "seed": 3,
    }
    lines = capsys.readouterr().out.splitlines()
    assert re.search(r"conv1 .* 2 +64 +1 timeout, 2 wrong +80 +90 +40 +2 +sparse +cpu_vector", lines[1])
    assert re.search(r"conv2 .* 3 +none +– +– +–", lines[2])
    assert lines[3:] == ["trials: 67", "failed: 3", "gain over the defaults, geometric mean: 2", "log: logs"]


def test_json(calls: Calls, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls.answers["tune"] = TUNED
    assert main(["tune", str(model), "--log", "logs", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written["gain"] == 2.0 and written["layers"][0]["knobs"] == {"rows": 2}


@pytest.mark.parametrize("options", [[], ["--log", "x", "--trials", "0"], ["--log", "x", "--time-budget", "soon"]])
def test_wrong_usage(options: list[str], model: Path) -> None:
    assert main(["tune", str(model), *options]) == 2


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--rpc-tracker", "nowhere", "--rpc-key", "k"], "HOST:PORT"),
        (["--rpc-key", "k"], "--rpc-tracker"),
        (["--target", "cuda"], "GPU"),
        (["--mcpu", "penryn"], "only it can measure"),
    ],
)
def test_bad_input_is_one_line(
    options: list[str],
    complaint: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(devices, "list_gpus", list)  # none
    assert main(["tune", str(model), "--log", str(tmp_path), *options]) == 4
    assert complaint in capsys.readouterr().err.splitlines()[-1]


def test_a_log_that_cannot_be_written_is_refused_before_the_work(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", str(model), "--log", str(model)]) == 8
    assert "cannot write a log here" in capsys.readouterr().err


def tally(*records: Any) -> Tally:
    layer = small_layers()[0]
    return Tally(layer, layer.rows, list(records))


def test_piped_progress_is_a_line_a_layer_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    state = tally(record(source="default", time_us=80.0))
    with tuning_progress(None) as (begin, told):
        begin([state])
        told(state)
        state.records.append(RECORD)
        told(state)
    assert capsys.readouterr().err.splitlines() == [
        "tuning 1 layers …",
        "three: 1 trials, best 80 µs, 1.00x the default",
    ]
    assert describe(state) == "best 40 µs, 2.00x the default"
    assert describe(tally(record(outcome="timeout"))) == "best nothing yet"


def test_a_bar_a_layer_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    state = tally(RECORD)
    with tuning_progress(64, 2.0) as (begin, told):
        begin([state])
        state.records.append(record(time_us=30.0, knobs={"rows": 9}))
        told(state)
    printed = capsys.readouterr().err
    assert re.search(r"three .*2/64.*best 30 µs", printed) and re.search(r"time, s .*0/120", printed)


def test_of_many_layers_the_latest_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    states = [tally(RECORD) for _ in range(MOST_BARS + 6)]
    for number, state in enumerate(states):
        state.layer = replace(state.layer, name=f"layer{number}")
    with tuning_progress(64) as (begin, told):
        begin(states)
        for state in states:
            told(state)
    last = capsys.readouterr().err.rpartition("layer6 ")[2]
    assert "layer29 " in last and "layer5 " not in last
