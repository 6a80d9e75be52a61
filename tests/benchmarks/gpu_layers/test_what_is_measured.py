"""Layers, cases, filters and variants."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.gpu_layers.build import Job, job_target, source_digest
from benchmarks.gpu_layers.cases import Case, select_cases
from benchmarks.gpu_layers.layers import FILE, derive, layer_of, layers, write
from benchmarks.gpu_layers.variants import Variant, read_candidates, variants_of, winners
from benchmarks.gpu_layers.weights import RealWeight, random_weight, real_weights, weight_of
from tests.tuning.making import record
from tvm_sparse.errors import InputError
from tvm_sparse.tuning.lookup import KnownKernels
from tvm_sparse.workload import Epilogue

REAL = RealWeight("caffenet_a/conv3", "alex3", 0.95, "")


def test_the_layers_are_those_of_the_networks():
    pytest.importorskip("onnx")
    some = derive(("resnet50", "googlenet"))
    known = [layer for layer in layers().values() if layer.network in ("resnet50", "googlenet")]
    assert [layer.name for layer in some] == [layer.name for layer in known]
    assert some == known


@pytest.mark.slow
def test_the_file_of_layers_is_what_deriving_writes():
    assert FILE.read_text() == write(derive()), "run python -m benchmarks.gpu_layers layers --write"


@pytest.mark.parametrize(
    ("name", "text"),
    {
        "r50_56_3": "n1 64x56x56 -> 64 3x3 padding 1,1,1,1",
        "r50_28_3": "n1 128x28x28 -> 128 3x3 padding 1,1,1,1",
        "r50_14_3": "n1 256x14x14 -> 256 3x3 padding 1,1,1,1",
        "r50_7_3": "n1 512x7x7 -> 512 3x3 padding 1,1,1,1",
        "r50_56_1e": "n1 64x56x56 -> 256 1x1",
        "r50_56_1r": "n1 256x56x56 -> 64 1x1",
        "r50_28_1r": "n1 512x28x28 -> 128 1x1",
        "r50_14_1e": "n1 256x14x14 -> 1024 1x1",
        "r50_14_1r": "n1 1024x14x14 -> 256 1x1",
        "r50_7_1r": "n1 2048x7x7 -> 512 1x1",
        "alex3": "n1 256x13x13 -> 384 3x3 padding 1,1,1,1",
        "goog3a3": "n1 96x28x28 -> 128 3x3 padding 1,1,1,1",
        "goog4e3": "n1 160x14x14 -> 320 3x3 padding 1,1,1,1",
        "alex2": "n1 96x27x27 -> 256 5x5 padding 2,2,2,2 groups 2",
        "r50_28_1es2": "n1 512x28x28 -> 1024 1x1 stride 2x2",
    }.items(),
)
def test_names_mean_the_shapes_of_the_notes(name, text):
    assert str(layers()[name].workload(1)) == text


def test_no_layer_is_there_twice_and_mobilenet_is_pointwise():
    workloads = [layer.workload(1) for layer in layers().values()]
    assert len(set(workloads)) == len(workloads) > 90
    assert {layer.network for layer in layers().values()} == {
        "resnet50",
        "googlenet",
        "alexnet",
        "vgg16",
        "mobilenetv1",
    }
    assert all(layer.workload(1).pointwise for layer in layers().values() if layer.network == "mobilenetv1")


def test_presets():
    assert len(select_cases("quick")) == 13 * 2
    assert len(select_cases("reference")) == 13 * 4 * 3
    assert {case.sparsity for case in select_cases("crossover")} == {0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98}
    assert len(select_cases("all")) == len(layers()) * 4 * 3
    assert [case.mask for case in select_cases("real", real=[REAL], batches=[1])] == ["real", "like"]


def test_filters_of_cases():
    (case,) = select_cases("reference", layers_like=["r50_7*3"], batches=[128], sparsities=[0.98])
    assert (case.layer, case.batch, case.sparsity) == ("r50_7_3", 128, 0.98)
    assert len(select_cases("quick", layers_like=["alex*", "goog*"])) == 3 * 2
    with pytest.raises(InputError, match="r51"):
        select_cases("quick", layers_like=["r51*"])
    with pytest.raises(InputError, match="--weights"):
        select_cases("real")


def test_every_case_has_a_key_of_its_own():
    cases = [
        *select_cases("reference"),
        *select_cases("reference", dtype="float16"),
        *select_cases("real", real=[REAL, RealWeight("other/conv3", "alex3", 0.95, "")]),
    ]
    assert len({case.key for case in cases}) == len(cases)


def test_random_filters_have_the_nonzeros_asked_for_and_uneven_rows():
    case = Case("r50_56_3", 1, 0.9)
    weight = weight_of(case, 7, None)
    rows = np.count_nonzero(weight.reshape(64, -1), axis=1)
    assert rows.sum() == round(0.1 * weight.size) and rows.min() < rows.max()
    assert np.square(weight).sum(axis=(1, 2, 3)).mean() == pytest.approx(1, rel=0.1)
    assert np.array_equal(weight, weight_of(Case("r50_56_3", 32, 0.9), 7, None)), "the batch changes no filter"
    assert not np.array_equal(weight, weight_of(case, 8, None))
    assert not random_weight((2, 3, 1, 1), 0, np.random.default_rng(0)).any()


@pytest.fixture
def published(tmp_path):
    rng = np.random.default_rng(0)
    conv3 = rng.standard_normal((384, 256, 3, 3)).astype(np.float32) * 5
    conv3[rng.random(conv3.shape) < 0.95] = 0
    np.savez(tmp_path / "caffenet_a.npz", conv3=conv3)
    pw6 = np.where(rng.random((512, 512)) < 0.1, 1, 0).astype(np.float32)
    np.savez(tmp_path / "mobilenet_v1_90.npz", pw6=pw6, dw6=pw6, pw6_bias=pw6[0])
    return tmp_path


def test_published_filters_find_their_layers(published):
    found = real_weights(published)
    assert [(weight.source, weight.layer) for weight in found] == [
        ("caffenet_a/conv3", "alex3"),
        ("mobilenet_v1_90/pw6", "mob7"),
    ]
    cases = select_cases("real", real=found, batches=[1])
    real, like = (weight_of(case, 1, published) for case in cases[:2])
    assert real.shape == like.shape == (384, 256, 3, 3)
    assert np.count_nonzero(real) == np.count_nonzero(like) and not np.array_equal(real != 0, like != 0)
    assert np.square(real).sum() == pytest.approx(384, rel=1e-3)
    with pytest.raises(InputError, match="--weights"):
        weight_of(cases[0], 1, None)


def test_published_filters_that_do_not_fit(tmp_path):
    with pytest.raises(InputError, match="no published filters"):
        real_weights(tmp_path)
    np.savez(tmp_path / "resnet50_3x3_90.npz", bg1=np.ones((64, 64)))
    with pytest.raises(InputError, match=r"bg1 \(64, 64\) is not the filter of r50_56_3"):
        real_weights(tmp_path)


def test_resnets_published_filters_are_of_the_named_layers():
    assert [layer_of(f"resnet50:layer{i}.1.conv2").name for i in (1, 2, 3)] == ["r50_56_3", "r50_28_3", "r50_14_3"]


def target():
    pytest.importorskip("tvm")
    from tvm_sparse.tvm_support import cuda_target

    return cuda_target("sm_90")


def test_variants_are_the_defaults_and_the_candidates(tmp_path):
    rows = [
        {"template": "cuda_pixel", "layers": "r50_14_*", "batch": 32, "knobs": [{"warps": 1}, {"warps": 1}, {}]},
        {"template": "cuda_pixel", "sparsity": 0.5, "knobs": [{"warps": 2}]},
    ]
    file = tmp_path / "c.json"
    file.write_text(json.dumps(rows))
    candidates = read_candidates(file)
    case = Case("r50_14_3", 32, 0.9)
    plain = variants_of(case, target())
    found = variants_of(case, target(), candidates)
    assert all(variant.default for variant in plain)
    assert [variant.last_resort for variant in plain] == [False] * (len(plain) - 1) + [True]
    (extra,) = [variant for variant in found if not variant.default]
    assert extra.template == "cuda_pixel" and extra.knobs["warps"] == 1 and len(found) == len(plain) + 1
    assert variants_of(Case("r50_14_3", 1, 0.9), target(), candidates, ["cuda_pixel"]) == variants_of(
        Case("r50_14_3", 1, 0.9), target(), (), ["cuda_pixel"]
    )


def test_what_compile_takes_from_a_log_is_a_variant():
    case = Case("r50_14_3", 32, 0.9)
    default = next(v for v in variants_of(case, target()) if v.template == "cuda_pixel")
    bare, fused = default.knobs, {**default.knobs, "warps": 4}
    other_version = {**default.knobs, "forgotten": 1}

    def found(*records):
        known = KnownKernels(
            record(workload=replace(case.workload(), epilogue=behind), density=part, template="cuda_pixel", knobs=knobs)
            for knobs, behind, part in records
        )
        return variants_of(case, target(), templates=["cuda_pixel"], known=known)

    relu = Epilogue(bias=True, activation="relu")
    both = found((bare, Epilogue(), 0.1), (fused, relu, 0.1))
    assert [(v.knobs["warps"], v.default, v.logged) for v in both] == [
        (bare["warps"], True, "exact"),
        (4, False, "exact"),
    ]
    assert [(v.default, v.logged) for v in found((fused, Epilogue(), 0.05))] == [(True, ""), (False, "nearest")]
    assert found((other_version, Epilogue(), 0.1)) == [default]


def test_winners_become_candidates(tmp_path):
    ours = {"template": "cuda_pixel", "knobs": {"warps": 2}, "default": False}
    fields = {"layer": "alex3", "batch": 1, "sparsity": 0.9, "dtype": "float32"}
    records = [{**fields, "ours": ours}, {**fields, "ours": {**ours, "default": True}}, fields]
    (tmp_path / "c.json").write_text(json.dumps(winners(records)))
    (candidate,) = read_candidates(tmp_path / "c.json")
    assert candidate.matches(Case("alex3", 1, 0.9)) and candidate.knobs == ({"warps": 2},)
    assert not candidate.matches(Case("alex3", 8, 0.9)) and not candidate.matches(Case("alex3", 1, 0.95))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not a list of candidates"),
        ('[{"template": "cuda_pixel"}]', "knobs"),
        ('[{"template": "cuda_pixel", "knobs": [], "layer": "x"}]', "unknown fields"),
        ("7", "not a list of candidates"),
    ],
)
def test_bad_candidates_are_refused(tmp_path, text, complaint):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(InputError, match=complaint):
        read_candidates(tmp_path / "c.json")


def test_a_candidate_with_an_unknown_knob_is_refused(tmp_path):
    (tmp_path / "c.json").write_text('[{"template": "cuda_pixel", "knobs": [{"wraps": 4}]}]')
    with pytest.raises(InputError, match="no knob wraps"):
        variants_of(Case("r50_14_3", 1, 0.9), target(), read_candidates(tmp_path / "c.json"))


def test_keys_of_kernels_change_with_all_that_a_kernel_is_made_of(monkeypatch):
    case, variant = Case("alex3", 1, 0.9), Variant("cuda_pixel", {"a": 1, "b": 2}, True)
    same = Job(case, Variant("cuda_pixel", {"b": 2, "a": 1}, False), "sm_90", 1)
    others = [
        Job(Case("alex3", 8, 0.9), variant, "sm_90", 1),
        Job(Case("alex3", 1, 0.8), variant, "sm_90", 1),
        Job(Case("alex3", 1, 0.9, "float16"), variant, "sm_90", 1),
        Job(Case("alex3", 1, 0.9, "float32", "real", "caffenet_a/conv3"), variant, "sm_90", 1),
        Job(case, Variant("cuda_pixel", {"a": 1, "b": 3}, True), "sm_90", 1),
        Job(case, Variant("fallback", {"a": 1, "b": 2}, True), "sm_90", 1),
        Job(case, variant, "sm_80", 1),
        Job(case, variant, "sm_90", 2),
        Job(case, variant, "sm_90", 1, None, "digest"),
    ]
    job = Job(case, variant, "sm_90", 1)
    assert job.key == same.key
    keys = {other.key for other in [job, *others]}
    assert len(keys) == 1 + len(others)
    monkeypatch.setattr("benchmarks.gpu_layers.build.source_digest", lambda: source_digest() + "changed")
    assert job.key not in keys


@pytest.mark.parametrize(("batch", "arch", "overlaps"), [(1, "sm_90", True), (8, "sm_90", False), (1, "sm_80", False)])
def test_variants_overlap_where_compile_lets_them(batch, arch, overlaps):
    variants = variants_of(Case("r50_14_3", batch, 0.9), job_target(arch))
    alone = [variant for variant in variants if not variant.overlap]
    overlapping = sum(not variant.last_resort for variant in alone) if overlaps else 0
    assert len(alone) >= 4 and len(variants) - len(alone) == overlapping
    assert len({(v.template, v.overlap) for v in variants}) == len(variants)
    assert {v.template for v in variants if v.overlap} == {v.template for v in alone[:overlapping]}
