"""Tables, goals and figures from records that are complete, partial or missing; figures follow the record."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from benchmarks import render
from benchmarks.gpu_layers import figures, tables
from benchmarks.gpu_layers.cases import Case, select_cases
from benchmarks.gpu_layers.goals import GOALS, verdict
from benchmarks.gpu_layers.layers import REFERENCE
from benchmarks.gpu_layers.report import Report
from benchmarks.gpu_layers.store import Store

ESCOIN = render.RESULTS / "gpu_escoin.json"
RUN = {
    "environment": {"commit": "abc", "packages": {"apache-tvm": "0.27"}, "cuda": {"gpus": None}},
    "device": {"name": "NVIDIA H200", "sms": 132, "clock_khz": 1980000},
    "libraries": {"torch": "2.11", "cudnn": 91900},
    "sources": "digest",
    "seed": 1,
    "date": "2026-11-22",
}
PEERS_US = {"cudnn_fp32": 20.4, "cudnn_tf32": 8.0, "cudnn_fp16": 6.0, "cudnn_bf16": 6.5, "cublas_im2col": 40.0}


def timing(us: float) -> dict:
    return {"median_us": us, "p10_us": us * 0.98, "p90_us": us * 1.03, "clock_mhz": 1975}


def fill(store: Store, cases: list[Case], us=lambda case: 4.0, template: str = "cuda_pixel") -> None:
    run = store.begin_run(RUN)
    write, store.write = store.write, lambda: None  # once, at the end
    for case in cases:
        ours = us(case)
        variants = [
            {"template": template, "default": True, "time": timing(ours * 0.9), "error": 1e-7},
            {"template": "cuda_other", "default": True, "time": timing(ours * 2), "error": 1e-7},
        ]
        record = {
            **vars(case),
            "variants": variants,
            "row_nnz": {"min": 0, "median": 10, "max": 30},
            "binding": "operands",
            "ours": {
                "template": template,
                "default": True,
                "time": timing(ours),
                "warm_icache": timing(ours * 0.8),
                "cold_l2": timing(ours * 1.5),
                "share_of_bound": {"operands": 0.5, "memory": 0.1, "arithmetic": 0.1},
                "error": 1e-7,
            },
            "sparse_peers": {"cusparse_im2col": timing(50.0), "cusparse": {"skipped": "too large"}},
        }
        peers = {name: timing(time) for name, time in PEERS_US.items()}
        store.add(case.key, record, peers, run)
    write()


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "r.json"


def report(path: Path) -> Report:
    return Report(path, ESCOIN)


def goal(start: str):
    return next(goal for goal in GOALS if goal.what.startswith(start))


@pytest.mark.parametrize("name", tables.BLOCKS)
def test_nothing_measured_yet(name, path):
    assert "ot measured" in tables.BLOCKS[name](report(path))


def test_no_figure_of_nothing(path):
    assert [draw(report(path)) for _, draw in figures.FIGURES.values()] == [None, None]


def test_goals_are_computed_and_judged(path):
    fill(Store(path), [Case(name, 1, 0.9) for name in REFERENCE])
    found = goal("batch 1, 90 %: over cuDNN float32").find(report(path))
    assert found.value == pytest.approx(5.1) and (found.cases, found.of) == (13, 13)
    judged = {goal.what: verdict(goal, goal.find(report(path))) for goal in GOALS}
    assert judged["batch 1, 90 %: over cuDNN float32, geometric mean"] == "**reached**"
    assert judged["batch 1, 90 %: over cuDNN TF32, geometric mean"] == "**reached**"
    assert judged["batch 1, 90 %: over cuDNN float16, geometric mean"] == "**reached**"
    assert judged["batch 1, 90 %: longest time of a layer"] == "**reached**, and more"
    # 6.7 us of r50_14_1e over 4 us; goog4e3, r50_56_1r and r50_28_1r have no figure of Escoin and are not missed.
    assert judged["batch 1, 90 %: over the ported Escoin, slowest layer"] == "**reached**"
    assert judged["batch 32, 90 %: over cuDNN float32, geometric mean"] == "not measured"


def test_one_slow_layer_is_a_goal_missed(path):
    fill(Store(path), [Case(name, 1, 0.9) for name in REFERENCE], lambda case: 7.0 if case.layer == "alex3" else 4.0)
    judged = {goal.what: verdict(goal, goal.find(report(path))) for goal in GOALS}
    assert judged["batch 1, 90 %: longest time of a layer"] == "missed"
    assert judged["batch 1, 90 %: over cuDNN float16, slowest layer"] == "missed"


def test_partial_records_say_so(path):
    fill(Store(path), [Case("r50_7_3", 1, 0.9)], lambda case: 1.0)
    found = goal("batch 1, 90 %: over cuDNN float32")
    assert verdict(found, found.find(report(path))) == "**reached**, and more so far: 1 of 13"
    assert "1 of 13" in tables.means(report(path)) and "20.4x" in tables.means(report(path))


def test_the_pattern_goal_counts_only_that_template(path):
    pattern = goal("batch 32, 90 %: r50_56_3")
    fill(Store(path), [Case("r50_56_3", 32, 0.9)])
    assert verdict(pattern, pattern.find(report(path))) == "not measured"
    fill(Store(path), [Case("r50_56_3", 32, 0.9)], template="cuda_pattern")
    assert verdict(pattern, pattern.find(report(path))) == "**reached**"


def test_published_filters_are_held_against_random_ones(path):
    pair = [Case("alex3", 1, 0.95, "float32", mask, "caffenet_a/conv3") for mask in ("real", "like")]
    fill(Store(path), pair, lambda case: 5.0 if case.mask == "real" else 4.0)
    found = goal("published filters: speed over random ones, slowest")
    assert found.find(report(path)).value == pytest.approx(80)
    assert "| caffenet_a/conv3 (alex3) | 1 | 95.0% | 3.0 |" in tables.published_filters(report(path))
    assert "| 80% |" in tables.published_filters(report(path))


@pytest.mark.parametrize(
    ("default", "logged", "text"),
    [(True, "exact", "| pixel |"), (False, "exact", "| pixel (log) |"), (False, "", "| pixel (tried) |")],
)
def test_tables_say_where_knobs_are_from(path, default, logged, text):
    fill(Store(path), [Case("alex3", 1, 0.9)])
    store = Store(path)
    store.cases[0]["ours"] |= {"default": default, "logged": logged}
    store.write()
    assert text in tables.reference_layers(report(path))


def test_crossovers_in_table_and_figure(path):
    fill(Store(path), select_cases("crossover"), lambda case: 204.0 * (1 - case.sparsity))
    text = tables.crossovers(report(path))
    assert text.splitlines()[2].startswith("| r50_56_3 | 90% | 96% | 97% |")
    drawn = figures.crossovers(report(path))
    assert drawn and ElementTree.fromstring(drawn).tag.endswith("svg")
    assert drawn.count("<circle") == 26


def test_crossovers_beyond_the_ends(path):
    fill(Store(path), [Case("alex3", 1, z) for z in (0.5, 0.9)], lambda case: 7.0)
    row = tables.crossovers(report(path)).splitlines()[-1]
    assert row.startswith("| alex3 | below 50% | below 50% | not up to 90% |")


def test_the_speed_up_figure_follows_the_record(path):
    fill(Store(path), select_cases("quick", layers_like=["r50*"]))
    drawn = figures.speed_ups(report(path))
    assert drawn and ElementTree.fromstring(drawn).tag.endswith("svg")
    assert drawn == figures.speed_ups(report(path))
    fill(Store(path), [Case("r50_7_3", 1, 0.9)], lambda case: 2.0)
    assert figures.speed_ups(report(path)) != drawn


def test_tables_of_a_full_record(path):
    cases = [*select_cases("reference"), *select_cases("quick", dtype="float16"), Case("vgg_14_512", 1, 0.9)]
    fill(Store(path), [*cases, *select_cases("quick", dtype="bfloat16")])
    text = {name: block(report(path)) for name, block in tables.BLOCKS.items()}
    for name, block in text.items():
        rows = [line for line in block.splitlines() if line.startswith("|")]
        for line in rows:
            assert line.count("|") > 4, (name, line)
    assert text["gpu-reference-layers"].count("### Batch") == 4
    assert (
        "| r50_56_3 | 4.00 us (3.92–4.12) | pixel | 4.00 us | 3.20 us | 6.00 us | 50% of operands |"
        in text["gpu-reference-layers"]
    )
    assert "vgg_14_512" in text["gpu-all-layers"] and "bfloat16" in text["gpu-sixteen-bit"]
    assert "| 1 | cuda_other | 0 of 13 | 13 | 2.00x |" in text["gpu-templates"]
    assert "1980 MHz, 1975 to 1975 MHz while measuring" in text["gpu-conditions"]
    assert "cuDNN 9.19.0" in text["gpu-conditions"] and text["gpu-troubles"] == "Nothing."


def test_troubles_are_listed_and_a_wrong_case_is_in_no_table(path):
    store = Store(path)
    run = store.begin_run(RUN)
    case = Case("alex3", 1, 0.9)
    variants = [
        {"template": "cuda_pixel", "default": True, "wrong": True, "error": 0.5},
        {"template": "cuda_other", "default": True, "failed": "compile: no"},
        {"template": "cuda_other", "default": False, "failed": "compile: a candidate"},
    ]
    store.add(case.key, {**vars(case), "variants": variants}, {}, run)
    text = tables.troubles(report(path))
    assert "**wrong**, relative error 0.5" in text and "compile: no" in text and "a candidate" not in text
    assert tables.means(report(path)) == tables.NOTHING


def test_rendering_writes_and_removes_figures(path, tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "page.md"
    page.write_text("<!-- begin: gpu-figures -->\n<!-- end: gpu-figures -->\n")
    fill(Store(path), select_cases("quick"))
    monkeypatch.setattr(render, "ROOT", tmp_path)
    monkeypatch.setattr(render, "DOCUMENTS", (page,))
    monkeypatch.setattr(render, "gpu_report", lambda: report(path))
    monkeypatch.setattr("sys.argv", ["render"])
    render.main()
    assert (tmp_path / "docs" / "gpu-speed-ups.svg").exists() and "gpu-speed-ups.svg" in page.read_text()
    monkeypatch.setattr("sys.argv", ["render", "--check"])
    render.main()
    path.unlink()
    with pytest.raises(SystemExit, match=r"page\.md, docs/gpu-speed-ups\.svg"):
        render.main()
    monkeypatch.setattr("sys.argv", ["render"])
    render.main()
    assert not (tmp_path / "docs" / "gpu-speed-ups.svg").exists() and "Not measured" in page.read_text()


def test_the_figures_of_escoin_are_of_reference_layers():
    assert set(json.loads(ESCOIN.read_text())["us"]) <= set(REFERENCE)


def test_kernels_that_overlap_have_their_time_without_beside_theirs(path):
    case = Case("r50_56_3", 1, 0.9)
    fill(Store(path), [case])
    (record,) = Store(path).cases
    record["ours"]["overlap"] = True
    record["variants"] = [
        {"template": "cuda_pixel", "overlap": overlap, "time": {"median_us": time}}
        for overlap, time in ((True, 4.0), (False, 5.0), (False, 4.5))
    ]
    path.write_text(json.dumps({**json.loads(path.read_text()), "cases": [record]}))
    assert "| r50_56_3 | 4.00 us (3.92–4.12) | pixel | 4.50 us |" in tables.reference_layers(report(path))
