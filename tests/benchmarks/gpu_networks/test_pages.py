"""What the pages say of a made-up record."""

from __future__ import annotations

import json

import pytest

from benchmarks.gpu_layers.goals import verdict
from benchmarks.gpu_networks import tables
from benchmarks.gpu_networks.goals import GOALS
from benchmarks.gpu_networks.report import Report
from benchmarks.markdown import NOTHING
from benchmarks.render import DOCUMENTS


def peer(precision: str, layout: str, us: float, speed_up: float, how: str = "eager, CUDA graph"):
    time = {"median_us": us, "p10_us": us - 1, "p90_us": us + 1, "latency_us": us + 9, "host_us": 5.0}
    return {
        "peer": "torch",
        "precision": precision,
        "layout": layout,
        "how": how,
        "time": time,
        "speed_up": speed_up,
        "relative_error": 1e-6,
        "note": "",
    }


def case(network: str, batch: int, us: float, **changes):
    failed = {**peer("float16", "NCHW", 0, 0, "torch.compile"), "time": None, "note": "TimeoutError: too | long"}
    return {
        "case": f"{network} {batch} {sorted(changes.items())}",
        "run": 0,
        "network": network,
        "batch": batch,
        "sparsity": 0.9,
        "weights": "seeded",
        "precision": "float32",
        "rounds": 11,
        "relative_error": 3e-7,
        "onnxruntime_error": 2e-7,
        "ours": {"median_us": us, "p10_us": us, "p90_us": us, "latency_us": us + 20, "host_us": 12.0},
        "peers": [
            peer("float32", "NCHW", 2000.0, 6.5),
            peer("float32", "channels_last", 2400.0, 7.5),
            peer("float16", "channels_last", 500.0, 1.6),
            peer("float32", "NCHW", 1500.0, 4.9, "torch.compile, CUDA graph"),
            failed,
        ],
        **changes,
    }


PROFILE = {
    "call_us": 330.0,
    "sum_us": 100.0,
    "kernels": [
        {"name": "conv1", "template": "", "decision": "", "time_us": 20.0, "bound_share": None},
        {"name": "layer1", "template": "cuda_pixel", "decision": "sparse", "time_us": 50.0, "bound_share": 0.25},
        {"name": "layer2", "template": "cuda_pixel", "decision": "sparse", "time_us": 30.0, "bound_share": 0.5},
    ],
}


@pytest.fixture
def report(tmp_path):
    run = {
        "environment": {
            "commit": "c0ffee",
            "cpu": "a CPU",
            "cuda": {"gpus": ["NVIDIA H200, 580, 9.0"]},
            "packages": {"apache-tvm": "0.27"},
        },
        "sources": "s",
        "log": "none",
        "device": {"name": "NVIDIA H200"},
        "libraries": {"torch": "2.11", "cudnn": 91900},
        "seed": 0,
        "date": "2026-11-22",
    }
    cases = [
        case("resnet50", 1, 308.0, endurance={"calls": 10000, "device_growth_bytes": 0, "host_growth_bytes": 2**20,
                                              "wrong_in_threads": 1}, profile=PROFILE),
        case("mobilenetv1", 1, 200.0, weights="published"),
        case("resnet50", 32, 1e4, precision="float16", onnxruntime_error=1e-3),
        {**{k: v for k, v in case("vgg16", 128, 1).items() if k not in ("ours", "peers")}, "failed": "compile: no"},
    ]  # fmt: skip
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"runs": [run], "cases": cases, "dense": [], "lethal": []}))
    return Report(path)


def found(report, what: str):
    (goal,) = [goal for goal in GOALS if goal.what.startswith(what)]
    value = goal.find(report)
    return value.value, verdict(goal, value)


def test_goals_take_the_fastest_eager_form(report):
    assert found(report, "ResNet-50, batch 1: over cuDNN float32") == (6.5, "**reached**")
    assert found(report, "ResNet-50, batch 1: over cuDNN float16") == (1.6, "missed")
    assert found(report, "ResNet-50, batch 32: over cuDNN TF32") == (None, "not measured")
    assert found(report, "ResNet-50, batch 32, float16 storage, 90%") == (1.6, "**reached**")
    assert found(report, "ResNet-50, batch 32, float16 storage, 95%") == (None, "not measured")
    assert found(report, "MobileNetV1, published weights, batch 1") == (7.5, "**reached**")
    assert next(goal for goal in GOALS if goal.what == "ResNet-50, batch 1").find(report).value == 308
    assert found(report, "host time")[0] == 12 and found(report, "relative error in float32") == (2e-7, "**reached**")
    assert found(report, "10 000 calls") == (0, "**reached**")
    assert found(report, "two threads") == (1, "missed")


def test_the_blocks(report):
    text = {name.removeprefix("gpu-networks-"): block(report) for name, block in tables.BLOCKS.items()}
    assert "3 cases on NVIDIA H200, 580, 9.0" in text["conditions"] and "cuDNN 9.19.0" in text["conditions"]
    rows = [line for line in text["all"].splitlines() if line.startswith("| ResNet-50 | 1 |")]
    assert rows == [
        "| ResNet-50 | 1 | 90% | random | float32 | 308 us (308–308) | 328 us | 12.0 us | 2000 us |  | 500 us "
        "| 6.50x |  | 1.60x | 2e-07 |"
    ]
    assert "unbound" not in text["all"]
    assert "| MobileNetV1 | 1 | 90% | published |" in text["all"]
    assert "1500 us (1499–1501) | 4.90x" in text["forms"] and "TimeoutError: too / long" in text["forms"]
    assert "| 10,000 | 0 bytes | 1.0 MiB | 1 |" in text["endurance"]
    one = "| ResNet-50 | 1 | 90% | random | float32 | 308 us | float32 | 2000 us | 1500 us | 4.90x |"
    assert one in text["compiled"] and len(text["compiled"].splitlines()) == 2 + 3
    assert text["templates"].splitlines()[2:] == [
        "| ResNet-50 | 1 | float32 | 308 us, 100 us one by one | cuda_pixel | 2 | 80.0 us | 80% |",
        "|  |  |  |  | other operators | 1 | 20.0 us | 20% |",
    ]
    assert "### ResNet-50, batch 1, float32" in text["slowest"]
    assert text["slowest"].splitlines()[4] == "| layer1 | sparse | cuda_pixel | 50.0 us | 25% |"
    assert text["short"].count("| ResNet-50 |") == 1 and "commit c0ffee" in text["short"]
    assert text["troubles"].startswith("- vgg16 128") and text["troubles"].endswith("compile: no")
    assert "**reached**" in text["goals"] and "missed" in text["goals"]


def test_unbound_calls_have_a_column_where_some_were_measured(report):
    one, other, *_ = report.measured()
    one.record["unbound"] = {**one.record["ours"], "median_us": 321.0}
    head, _, first, second, *_ = tables.networks(report).splitlines()
    at = head.split("|").index(" unbound ")
    cells = {row.split("|")[1].strip(): row.split("|")[at].strip() for row in (first, second)}
    assert sorted(cells.values()) == ["", "321 us, host 12.0 us"], (one, other)


def test_without_a_record_nothing_is_claimed(tmp_path):
    report = Report(tmp_path / "missing.json")
    for name, block in tables.BLOCKS.items():
        text = block(report)
        assert "reached" not in text and ("not measured" in text if name.endswith("goals") else text == NOTHING), name


def test_every_block_stands_on_a_page():
    pages = "".join(path.read_text() for path in DOCUMENTS)
    assert all(f"<!-- begin: {name} -->" in pages for name in tables.BLOCKS)
