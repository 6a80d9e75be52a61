"""One library for every batch up to its largest: each as in onnxruntime, whatever was compiled or is padded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

import tvm_sparse
from tests.network.onnx_models import conv, model, tensor, weights
from tests.test_tvm_support import needs_cuda
from tvm_sparse.compiled import CompiledNetwork
from tvm_sparse.errors import InputError, LibraryError, ModelError, VerificationError
from tvm_sparse.prune import magnitude_mask

LARGEST = 5
BUCKETS = (1, 2, 4, 5)
SHIFT = weights(16, 1, 1, seed=9)


def two_inputs(seed: int = 1) -> onnx.ModelProto:
    """x (batch, 8, 9, 10), shift (16, 1, 1), z (batch, 16) -> y (batch, 16, 9, 10), s (batch, 16)."""
    sparse = weights(16, 8, 3, 3, seed=seed)
    nodes = [
        conv("first", "x", "w b", "a", pads=[1] * 4),
        helper.make_node("Add", ["a", "shift"], ["c"]),
        helper.make_node("Relu", ["c"], ["y"]),
        helper.make_node("GlobalAveragePool", ["y"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Add", ["f", "z"], ["s"]),
    ]
    inputs = [tensor("x", ("n", 8, 9, 10)), tensor("shift", (16, 1, 1)), tensor("z", ("n", 16))]
    constants = {"w": sparse * magnitude_mask(sparse, 0.8), "b": weights(16)}
    return model(nodes, constants, inputs, ("y", "s"))


def inputs_of(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": weights(n, 8, 9, 10, seed=seed), "shift": SHIFT, "z": weights(n, 16, seed=seed + 1)}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("batches") / "net.onnx"
    onnx.save(two_inputs(), path)
    return path


@pytest.fixture(scope="module")
def compiled(path: Path) -> CompiledNetwork:
    return tvm_sparse.compile(path, batch=f"1-{LARGEST}", threads=2)


@pytest.fixture(scope="module")
def library(compiled: CompiledNetwork, path: Path) -> Path:
    compiled.export(path.with_name("net.so"))
    return path.with_name("net.so")


@pytest.fixture(scope="module")
def network(library: Path) -> Any:
    return tvm_sparse.load(library, threads=2)


@pytest.fixture(scope="module")
def reference(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path)


@pytest.mark.parametrize("kind", ["numpy", "sliced", "torch", "dlpack"])
@pytest.mark.parametrize("n", range(1, LARGEST + 1))
def test_every_batch(network: Any, reference: onnxruntime.InferenceSession, n: int, kind: str) -> None:
    inputs = inputs_of(n, seed=n)
    expected = reference.run(None, inputs)
    given: list[Any] = list(inputs.values())
    if kind == "sliced":
        given = [np.concatenate([array, np.full_like(array, np.nan)])[: len(array)] for array in given]
    elif kind == "torch":
        torch = pytest.importorskip("torch")
        given = [torch.from_numpy(array) for array in given]
    elif kind == "dlpack":
        tvm_ffi = pytest.importorskip("tvm_ffi")
        given = [tvm_ffi.from_dlpack(array) for array in given]
    outputs = network(*given)
    for ours, theirs in zip(outputs, expected, strict=True):
        assert isinstance(ours, np.ndarray) == (kind in ("numpy", "sliced"))
        array = np.asarray(ours) if kind != "dlpack" else np.from_dlpack(ours)
        assert array.shape == theirs.shape
        np.testing.assert_allclose(array, theirs, rtol=1e-5, atol=1e-5)


def test_one_image_more_or_less_does_not_disturb_another_call(network: Any) -> None:
    kept = {n: network.run(inputs_of(n)) for n in (3, 5, 1, 4)}
    copies = {n: {name: array.copy() for name, array in outputs.items()} for n, outputs in kept.items()}
    for n in (2, 5, 3, 3, 1):
        network.run(inputs_of(n, seed=7))
    for n, outputs in kept.items():
        assert all(np.array_equal(outputs[name], copies[n][name]) for name in outputs)
        again = network.run(inputs_of(n))
        assert all(np.array_equal(outputs[name], again[name]) for name in outputs)


def test_what_it_says_about_itself(compiled: CompiledNetwork, network: Any) -> None:
    assert network.metadata.batch == compiled.metadata.batch == tvm_sparse.deploy.BatchSizes(BUCKETS, ("x", "z"))
    assert [spec.shape for spec in network.inputs] == [(LARGEST, 8, 9, 10), (16, 1, 1), (LARGEST, 16)]
    assert [layer.batch for layer in compiled.report()] == list(BUCKETS)
    (layer,) = compiled.report(3)
    assert (layer.batch, layer.workload.split()[0]) == (4, "n4")
    assert [layer["batch"] for layer in network.report(3)] == [4] and len(network.report()) == len(BUCKETS)
    assert compiled.dense_bytes == 4 * 16 * 72 and compiled.sparse_bytes == compiled.report(LARGEST)[0].packed_bytes
    assert network.random_inputs(0, 3)["x"].shape == (3, 8, 9, 10)
    assert network.random_inputs(0)["z"].shape == (LARGEST, 16)


def test_it_was_verified_at_every_size_and_padded(compiled: CompiledNetwork, path: Path, library: Path) -> None:
    assert compiled.verification is not None and compiled.verification.batches == (*BUCKETS, 3)
    assert "batches 1, 2, 4, 5, 3" in compiled.verification.describe()
    verification = tvm_sparse.verify(path, library)
    assert verification.passed and verification.batches == (*BUCKETS, 3)
    assert not tvm_sparse.verify(two_inputs(seed=5), library).passed
    fixed = two_inputs()
    for value in (fixed.graph.input[0], fixed.graph.input[2]):
        value.type.tensor_type.shape.dim[0].dim_value = 5
    with pytest.raises(LibraryError, match="was compiled from another model"):
        tvm_sparse.verify(fixed, library)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"x": (6, 8, 9, 10)},
            "input 'x' has batch 6, the library serves 1 to 5: split it, or compile for a larger one",
        ),
        ({"x": (0, 8, 9, 10)}, "input 'x' has batch 0, the library serves 1 to 5"),
        ({"z": (2, 16)}, "input 'z' has batch 2, input 'x' has 3"),
        ({"x": (3, 8, 9)}, r"input 'x' has shape \(3, 8, 9\), expected \(3, 8, 9, 10\)"),
        ({"x": ()}, r"input 'x' has shape \(\), expected \(3, 8, 9, 10\)"),
        ({"shift": (3, 1, 1)}, r"input 'shift' has shape \(3, 1, 1\), expected \(16, 1, 1\)"),
        ({"x": None}, "input 'x': NoneType is no numpy array"),
    ],
    ids=str,
)
def test_batches_that_are_not_served(network: Any, changes: dict[str, Any], message: str) -> None:
    inputs: dict[str, Any] = inputs_of(3)
    for name, shape in changes.items():
        inputs[name] = None if shape is None else np.zeros(shape, np.float32)
    with pytest.raises(InputError, match=message):
        network(**inputs)


def test_other_calls_refuse_them_too(network: Any, compiled: CompiledNetwork, path: Path) -> None:
    for call in (lambda: network.random_inputs(0, 6), lambda: network.report(6), lambda: compiled.report(6)):
        with pytest.raises(InputError, match="batch 6, the library serves 1 to 5"):
            call()
    with pytest.raises(InputError, match="batch 2: the library was compiled for one shape only"):
        tvm_sparse.compile(path, batch=2, verify=False).report(2)


def test_bench_times_the_batch_asked_for(network: Any) -> None:
    seen = []
    invoke = network.invoke
    network.invoke = lambda inputs, *rest: seen.append(inputs[0].shape[0]) or invoke(inputs, *rest)
    try:
        assert tvm_sparse.bench(network, batch=3, warmup=1, repeats=2).batch == 3
        assert tvm_sparse.bench(network, warmup=0, repeats=1).batch is None
    finally:
        del network.invoke
    assert seen == [4, 4, 4, 5]
    with pytest.raises(InputError, match="not both"):
        tvm_sparse.bench(network, batch=3, inputs=inputs_of(3))


def test_it_is_compared_with_onnxruntime_at_the_batch_asked_for(network: Any, path: Path) -> None:
    from tvm_sparse import peers

    assert peers.compare(network, path, peer="onnxruntime", batch=3, rounds=1).relative_error < 1e-5
    with pytest.raises(InputError, match="batch 6, the library serves 1 to 5"):
        peers.compare(network, path, peer="onnxruntime", batch=6, rounds=1)


def test_equal_constants_are_stored_once(tmp_path: Path) -> None:
    dense = weights(96, 96, 3, 3)
    wide = model([conv("wide", "x", "w", "y", pads=[1] * 4)], {"w": dense}, [tensor("x", ("n", 96, 10, 10))])
    sizes = {}
    for batch in (4, "1,2,4"):
        exported = tvm_sparse.compile(wide, batch=batch, verify=False).export(tmp_path / "wide.so")
        sizes[batch] = exported.library_bytes
    assert sizes[4] > dense.nbytes
    assert sizes["1,2,4"] < sizes[4] + dense.nbytes / 4


def test_a_network_that_looks_at_other_images_is_not_passed(tmp_path: Path) -> None:
    nodes = [conv("first", "x", "w", "a"), helper.make_node("Softmax", ["a"], ["y"], axis=0)]
    mixing = model(nodes, {"w": weights(4, 3, 3, 3)}, [tensor("x", ("n", 3, 8, 8))])
    assert tvm_sparse.compile(mixing, batch=4).verification is not None
    with pytest.raises(VerificationError, match=r"output y has a relative error .*batches 1, 2, 4, 3"):
        tvm_sparse.compile(mixing, batch="1-4")


@pytest.mark.parametrize(
    ("nodes", "shape", "message"),
    [
        (
            [("ReduceMean", {"axes": [0], "keepdims": 0})],
            ("n", 3, 8, 8),
            "output 'y' is 3x8x8 at batch 1, not a row for",
        ),
        ([("Reshape", {})], ("n", 3, 8, 8), "output 'y' is 3x64 at batch 1, not a row for each image"),
        ([("Relu", {})], (2, 3, 8, 8), "batch 1 asked for, but input 'x' is fixed at 2"),
        ([("Relu", {})], ("n", 3, "n", 8), "input 'x' is 1x3x1x8 at batch 1, not a row for each image"),
    ],
    ids=str,
)
def test_models_without_a_row_for_each_image(nodes: list[Any], shape: tuple[Any, ...], message: str) -> None:
    ((kind, attributes),) = nodes
    reshape = {"shape": np.array([-1, 64])} if kind == "Reshape" else {}
    node = helper.make_node(kind, ["x", *reshape], ["y"], **attributes)
    with pytest.raises((ModelError, InputError), match=message):
        tvm_sparse.compile(model([node], reshape, [tensor("x", shape)]), batch="1-2")


def test_a_torch_program_with_a_dynamic_batch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    layers = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 3, padding=1), torch.nn.ReLU()).eval()
    program = torch.export.export(
        layers, (torch.zeros(2, 8, 10, 10),), dynamic_shapes=({0: torch.export.Dim("n", min=1, max=64)},)
    )
    torch.export.save(program, tmp_path / "net.pt2")
    network = tvm_sparse.compile(tmp_path / "net.pt2", batch=[1, 4])
    assert network.verification is not None and network.verification.batches == (1, 4, 3)
    x = weights(3, 8, 10, 10)
    with torch.no_grad():
        np.testing.assert_allclose(network(x), layers(torch.from_numpy(x)).numpy(), rtol=1e-5, atol=1e-5)


@needs_cuda
def test_every_size_has_kernels_of_its_own_on_a_gpu(path: Path) -> None:
    compiled = tvm_sparse.compile(path, target="cuda", arch="sm_90", batch="1,4")
    assert [layer.workload.split()[0] for layer in compiled.report()] == ["n1", "n4"]
    functions = compiled._built.executable.stats()
    assert "main_1" in functions and "_batch_1" in functions and "_batch_4" in functions


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_every_batch_on_the_gpu(path: Path, reference: onnxruntime.InferenceSession, kind: str, tmp_path: Path) -> None:
    tvm_sparse.compile(path, target="cuda", arch=["sm_80", "sm_90"], batch="1-5").export(tmp_path / "gpu.so")
    network = tvm_sparse.load(tmp_path / "gpu.so")
    for n in (5, 3, 1, 2, 4, 3):
        given: list[Any] = list(inputs_of(n, seed=n).values())
        if kind == "torch":
            torch = pytest.importorskip("torch")
            given = [torch.from_numpy(array).cuda() for array in given]
        outputs = network(*given)
        for ours, theirs in zip(outputs, reference.run(None, inputs_of(n, seed=n)), strict=True):
            array = ours.cpu().numpy() if kind == "torch" else ours
            np.testing.assert_allclose(array, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@needs_cuda
def test_padding_waits_for_the_callers_stream(path: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tvm_sparse.compile(path, target="cuda", arch=["sm_80", "sm_90"], batch="1,4").export(tmp_path / "gpu.so")
    network = tvm_sparse.load(tmp_path / "gpu.so")
    x, shift, z = (torch.from_numpy(array).cuda() for array in inputs_of(3).values())
    expected = network(x, shift, z)
    slow = torch.randn(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    for _ in range(5):
        with torch.cuda.stream(torch.cuda.Stream()):
            late = x + 0 * (slow @ slow @ slow).sum()
            outputs = network(late, shift, z)
        torch.cuda.synchronize()
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(outputs, expected, strict=True))
