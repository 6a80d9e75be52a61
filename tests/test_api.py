"""The Python calls a user makes, on small networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import tvm_sparse
from tests.network.onnx_models import conv, model, tensor, weights
from tvm_sparse.compiled import CompiledNetwork
from tvm_sparse.errors import CompileError, InputError, LibraryError, ModelError, VerificationError
from tvm_sparse.prune import magnitude_mask


def pruned(*shape: int, seed: int) -> np.ndarray:
    weight = weights(*shape, seed=seed)
    return weight * magnitude_mask(weight, 0.8)


def two_layers(seed: int = 1, x: Any = ("batch", 3, 12, 12), dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """Convolutions "first" (dense) and "second" (80 % zeros); x (batch, 3, 12, 12) -> y (batch, 16, 6, 6)."""
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    constants = {"w": weights(8, 3, 3, 3, seed=seed), "v": pruned(16, 8, 3, 3, seed=seed + 1), "b": weights(16)}
    nodes = [
        conv("first", "x", "w", "a", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["r"]),
        conv("second", "r", "v b", "y", pads=[1] * 4, strides=[2, 2]),
    ]
    made = model(nodes, {name: array.astype(kind) for name, array in constants.items()}, [tensor("x", x, dtype)])
    made.graph.output[0].type.tensor_type.elem_type = dtype
    return made


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("api") / "two.onnx"
    onnx.save(two_layers(), path)
    return path


@pytest.fixture(scope="module")
def stages() -> list[tuple[str, float]]:
    return []


@pytest.fixture(scope="module")
def network(path: Path, stages: list[tuple[str, float]]) -> CompiledNetwork:
    return tvm_sparse.compile(path, batch=2, threads=2, progress=lambda stage, part: stages.append((stage, part)))


def test_the_report(network: CompiledNetwork) -> None:
    first, second = network.report()
    assert (first.name, first.decision, first.sparsity) == ("first", "dense", 0.0)
    assert (second.name, second.decision) == ("second", "sparse")
    assert second.sparsity == pytest.approx(0.8, abs=0.01)
    assert second.workload == "n2 8x12x12 -> 16 3x3 stride 2x2 padding 1,1,1,1"
    assert network.dense_bytes == 4 * (8 * 27 + 16 * 72) == first.dense_bytes + second.dense_bytes
    assert second.packed_bytes < second.dense_bytes
    assert network.sparse_bytes == first.packed_bytes + second.packed_bytes


def test_the_metadata(network: CompiledNetwork) -> None:
    metadata = network.metadata
    assert (metadata.model, metadata.target, metadata.archs) == ("two", "llvm", ())
    assert [(spec.name, spec.shape, spec.dtype) for spec in metadata.inputs] == [("x", (2, 3, 12, 12), "float32")]
    assert [(spec.name, spec.shape, spec.dtype) for spec in metadata.outputs] == [("y", (2, 16, 6, 6), "float32")]
    assert [(layer["name"], layer["decision"]) for layer in metadata.layers] == [
        ("first", "dense"),
        ("second", "sparse"),
    ]


def test_it_was_verified(network: CompiledNetwork) -> None:
    assert network.verification is not None and network.verification.passed
    assert network.verification.reference == "onnxruntime"
    assert 0 < network.verification.relative_error["y"] <= 1e-5


def test_progress_names_every_stage_and_finishes_it(network: CompiledNetwork, stages: list[tuple[str, float]]) -> None:
    names = list(dict.fromkeys(stage for stage, _ in stages))
    assert names == ["import the model", "pack and schedule", "schedule dense operators", "generate code", "verify"]
    for name in names:
        parts = [part for stage, part in stages if stage == name]
        assert parts == sorted(parts) and parts[0] >= 0 and parts[-1] == 1.0


def test_calling_exporting_and_loading_agree(network: CompiledNetwork, path: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 12, 12)).astype(np.float32)
    (expected,) = onnxruntime.InferenceSession(path).run(None, {"x": x})
    here = network(x)
    np.testing.assert_allclose(here, expected, rtol=1e-4, atol=1e-4)
    assert np.array_equal(network(x=x), here)
    report = network.export(tmp_path / "two.so")
    library = tvm_sparse.load(tmp_path / "two.so")
    assert np.array_equal(library(x), here)
    assert report.library_bytes == (tmp_path / "two.so").stat().st_size
    assert tvm_sparse.verify(path, tmp_path / "two.so").passed
    assert not tvm_sparse.verify(two_layers(seed=5), tmp_path / "two.so").passed


def test_verify_refuses_another_model(network: CompiledNetwork, tmp_path: Path) -> None:
    library = tmp_path / "two.so"
    network.export(library)
    renamed = two_layers()
    renamed.graph.node[2].output[0] = renamed.graph.output[0].name = "z"
    for other, what in [
        (two_layers(x=(1, 3, 12, 12)), "shape 2x3x12x12 does not fit input 'x', which is 1x3x12x12"),
        (model([conv("c", "other", "w", "y")], {"w": weights(4, 3, 3, 3)}, [tensor("other", (2, 3, 12, 12))]), "'x'"),
        (renamed, "outputs y float32"),
        (two_layers(dtype=TensorProto.FLOAT16), "inputs x float32"),
    ]:
        with pytest.raises(LibraryError, match="was compiled from another model") as caught:
            tvm_sparse.verify(other, library)
        assert what in str(caught.value) and str(library) in str(caught.value)


@pytest.mark.parametrize("batch", [1, 3])
def test_batch_and_shapes_pin_the_input(path: Path, batch: int) -> None:
    pinned = tvm_sparse.compile(path, batch=batch, verify=False)
    assert pinned.metadata.inputs[0].shape == (batch, 3, 12, 12)
    assert pinned.verification is None
    with pytest.raises(ModelError, match=r"input 'x'.*leaves dimension 0"):
        tvm_sparse.compile(path)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sparse": "sometimes"}, InputError, "unknown mode --sparse sometimes"),
        ({"target": "metal"}, InputError, "unknown target 'metal'"),
        ({"target": "cuda"}, CompileError, "--arch sm_90"),
        ({"arch": "sm_90"}, InputError, "belongs to --target cuda"),
        ({"target": "cuda", "arch": "sm_90", "mcpu": "skylake"}, InputError, "belongs to --target llvm"),
        ({"target": "cuda", "arch": "sm_1"}, CompileError, "sm_1"),
        ({"mcpu": "80486dx"}, CompileError, "LLVM does not know the CPU '80486dx'"),
        ({"threads": 0}, InputError, "0 threads"),
        ({"batch": 0}, InputError, "batch 0"),
        ({"batch": -1}, InputError, "batch -1"),
        ({"shapes": {"image": (1, 3, 8, 8)}}, InputError, "'image'"),
        ({"shapes": {"x": (1, 4, 8, 8)}}, InputError, "shape 1x4x8x8 does not fit"),
    ],
    ids=str,
)
def test_bad_options_are_refused_in_one_line(
    path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        tvm_sparse.compile(path, **options)
    assert "\n" not in str(caught.value)


def test_options_are_checked_before_the_model_is_read() -> None:
    with pytest.raises(InputError, match="unknown mode"):
        tvm_sparse.compile("nowhere.onnx", sparse="sometimes")
    with pytest.raises(ModelError, match=r"nowhere\.onnx: no such file"):
        tvm_sparse.compile("nowhere.onnx")


def test_a_mismatch_raises() -> None:
    with pytest.raises(VerificationError, match=r"net: output y has a relative error of .* against onnxruntime"):
        tvm_sparse.compile(two_layers(), batch=1, tolerance=1e-12)


def test_code_for_a_named_cpu_is_not_run_here(path: Path) -> None:
    named = tvm_sparse.compile(path, batch=1, mcpu="x86-64-v2" if _x86() else "generic")
    assert named.verification is None
    assert named.metadata.mcpu in ("x86-64-v2", "generic")


def test_half_precision_stays_dense_and_is_verified() -> None:
    half = tvm_sparse.compile(two_layers(dtype=TensorProto.FLOAT16), batch=1, sparse="always")
    assert [layer.reason for layer in half.report()] == ["dtype float16 stays dense"] * 2
    assert half.verification is not None and half.verification.passed
    assert half(np.zeros((1, 3, 12, 12), np.float16)).dtype == np.float16


def test_double_precision_runs_but_not_in_onnxruntime() -> None:
    double = two_layers(dtype=TensorProto.DOUBLE)
    with pytest.raises(ModelError, match=r"onnxruntime cannot run this model .*--no-verify"):
        tvm_sparse.compile(double, batch=1)
    network = tvm_sparse.compile(double, batch=1, verify=False)
    x = np.random.default_rng(0).standard_normal((1, 3, 12, 12))
    (expected,) = ReferenceEvaluator(double).run(None, {"x": x})
    np.testing.assert_allclose(network(x), expected, rtol=1e-12, atol=1e-12)


def test_a_torch_program_compiles_from_memory_and_from_its_file(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    layers = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 3, padding=1), torch.nn.BatchNorm2d(16), torch.nn.SiLU()).eval()
    with torch.no_grad():
        layers[0].weight *= torch.from_numpy(magnitude_mask(layers[0].weight.numpy(), 0.8))
    program = torch.export.export(layers, (torch.zeros(1, 8, 10, 10),))
    torch.export.save(program, tmp_path / "net.pt2")
    for source in (program, tmp_path / "net.pt2"):
        network = tvm_sparse.compile(source)
        (layer,) = network.report()
        assert (layer.name, layer.decision) == ("0", "sparse")
        assert network.verification is not None and network.verification.reference == "torch"
        assert network.verification.passed


def test_inspect_tells_what_compile_sees(path: Path, network: CompiledNetwork) -> None:
    summaries = tvm_sparse.inspect(path, batch=2)
    assert [(layer.name, layer.sparsity) for layer in summaries] == [
        (layer.name, pytest.approx(layer.sparsity)) for layer in network.report()
    ]
    assert all(layer.eligible for layer in summaries)


def _x86() -> bool:
    import platform

    return platform.machine() in ("x86_64", "AMD64")
