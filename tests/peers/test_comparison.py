"""A compiled network beside torch and onnxruntime on a CPU; what a GPU adds is shown on stand-ins."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

import tvm_sparse
from tests.network.onnx_models import conv, model, tensor, weights
from tvm_sparse.errors import InputError, ModelError
from tvm_sparse.peers import Compiling, compare
from tvm_sparse.peers.source import dense_model

torch = pytest.importorskip("torch")
from tvm_sparse.peers import torch_forms  # noqa: E402
from tvm_sparse.peers.comparison import _bound_outputs  # noqa: E402
from tvm_sparse.peers.torch_forms import COMPILED, DenseTorch, Form, precision_flags, time_limit  # noqa: E402

EAGER = Compiling(None)


class Small(torch.nn.Module):  # type: ignore[name-defined, misc]
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 6, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(6)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)))


def small_onnx() -> onnx.ModelProto:
    nodes = [conv("first", "x", "w b", "a", pads=[1, 1, 1, 1]), onnx.helper.make_node("Relu", ["a"], ["y"])]
    filters = weights(6, 4, 3, 3)
    filters[np.abs(filters) < 1] = 0
    return model(nodes, {"w": filters, "b": weights(6, seed=1)}, [tensor("x", ("N", 4, 12, 12))])


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Both kinds of models and a library of each, at batch 2."""
    folder = tmp_path_factory.mktemp("peers")
    onnx.save(small_onnx(), folder / "net.onnx")
    torch.manual_seed(0)
    program = torch.export.export(Small().eval(), (torch.zeros(2, 4, 12, 12),))
    torch.export.save(program, folder / "net.pt2")
    for kind in ("onnx", "pt2"):
        compiled = tvm_sparse.compile(folder / f"net.{kind}", batch=2 if kind == "onnx" else None, threads=1)
        compiled.export(folder / f"{kind}.so")
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_torch_on_the_cpu(files, kind):
    network = tvm_sparse.load(files[f"{kind}.so"], threads=1)
    told: list[str] = []
    before = torch.get_num_threads()
    found = compare(network, files[f"net.{kind}"], compiling=EAGER, rounds=3, tell=told.append)
    assert torch.get_num_threads() == before
    assert (found.reference, found.device, found.rounds) == ("torch in float64", "cpu", 3)
    assert 0 < found.relative_error < 1e-6
    assert [(peer.precision, peer.layout, peer.how) for peer in found.peers] == [
        ("float32", "NCHW", "eager"),
        ("float32", "channels_last", "eager"),
    ]
    for peer in found.peers:
        assert peer.time is not None and 0 < peer.time.p10_us <= peer.time.median_us <= peer.time.p90_us
        assert peer.speed_up is not None and 0 < (peer.relative_error or 0) < 1e-6
    assert told[0] == "read the model" and told[-1] == "3 rounds of 3 candidates"


def test_onnxruntime(files):
    network = tvm_sparse.load(files["onnx.so"], threads=1)
    found = compare(network, files["net.onnx"], peer="onnxruntime", rounds=2)
    (peer,) = found.peers
    assert (peer.peer, found.reference, peer.relative_error) == ("onnxruntime", "onnxruntime", None)
    assert 0 < found.relative_error < 1e-6 and peer.time is not None and found.threads == 1


def test_a_library_that_computes_something_else_shows(files):
    wrong = small_onnx()
    bias = next(item for item in wrong.graph.initializer if item.name == "b")
    bias.CopyFrom(onnx.numpy_helper.from_array(weights(6, seed=1) + 1, "b"))
    network = tvm_sparse.load(files["onnx.so"], threads=1)
    assert compare(network, wrong, compiling=EAGER, rounds=1).relative_error > 0.1


@pytest.mark.parametrize(
    ("given", "arguments", "complaint"),
    [
        ("net.onnx", {"peer": "caffe"}, "no peer is called 'caffe'"),
        ("net.onnx", {"rounds": 0}, "at least one round"),
        ("net.pt2", {"peer": "onnxruntime"}, "onnxruntime runs .onnx models only"),
    ],
)
def test_what_cannot_be_compared(files, given, arguments, complaint):
    network = tvm_sparse.load(files["onnx.so"], threads=1)
    with pytest.raises(InputError, match=complaint):
        compare(network, files[given], **arguments)


def test_a_file_that_is_no_model(files):
    with pytest.raises(ModelError, match="unknown kind of model"):
        compare(tvm_sparse.load(files["onnx.so"], threads=1), files["onnx.so"])


def test_torch_without_a_gpu_for_a_gpu_library(files, monkeypatch):
    network = tvm_sparse.load(files["onnx.so"], threads=1)
    network.device = "cuda:0"
    with pytest.raises(InputError, match="sees no GPU, and the library runs on cuda:0"):
        compare(network, files["net.onnx"])
    with pytest.raises(InputError, match="onnxruntime on the CPU: compare it with torch"):
        compare(network, files["net.onnx"], peer="onnxruntime")


def dense(device: str = "cpu") -> DenseTorch:
    torch.manual_seed(0)
    return DenseTorch(lambda _: Small().eval(), [weights(2, 4, 12, 12)], device)


def test_precisions_show_in_the_error():
    peer = dense()
    (exact,) = peer.exact()
    errors = {}
    for precision in ("float32", "float16"):
        (output,) = peer.ready(Form(precision, "channels_last")).outputs()
        errors[precision] = np.linalg.norm(output - exact) / np.linalg.norm(exact)
    assert 0 < errors["float32"] < 1e-6 and 1e-5 < errors["float16"] < 1e-2


def test_the_forms_of_a_gpu():
    peer = dense()
    assert [form.precision for form in peer.forms()] == ["float32", "float32"]
    peer._device = "cuda:0"
    assert len(set(peer.forms())) == 6 and {form.how for form in peer.forms()} == {"eager"}


def test_flags_hold_while_a_form_runs_and_are_put_back(monkeypatch):
    seen = []

    class Watching(Small):
        def forward(self, x):
            seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
            return x

    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark
    peer = DenseTorch(lambda _: Watching(), [weights(1, 1, 2, 2)], "cpu")
    for precision, allowed in (("float32", False), ("TF32", True), ("float16", False)):
        seen.clear()
        peer.ready(Form(precision, "NCHW")).call()
        assert set(seen) == {(allowed, allowed)}
    with precision_flags(tf32=True):
        assert torch.backends.cudnn.benchmark
    after = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark
    assert before == after


def test_torch_compile_is_given_the_faster_layout_and_may_fail(files, monkeypatch):
    modes = []

    def refuse(module, *, mode, dynamic):
        modes.append(mode)
        raise RuntimeError("no C++ compiler\nhere")

    monkeypatch.setattr(torch, "compile", refuse)
    network = tvm_sparse.load(files["onnx.so"], threads=1)
    found = compare(network, files["net.onnx"], compiling=Compiling("reduce-overhead"), rounds=1)
    *eager, compiled = found.peers
    assert modes == ["reduce-overhead"] and compiled.how == "torch.compile" and compiled.time is None
    assert compiled.note == "RuntimeError: no C++ compiler here" and len(eager) == 2


def test_torch_compile_may_take_too_long(monkeypatch):
    import time

    monkeypatch.setattr(torch, "compile", lambda module, **_: lambda *inputs: time.sleep(30))
    with pytest.raises(TimeoutError, match=r"torch\.compile took longer than 0\.1 s"):
        dense().ready(Form("float32", "NCHW", COMPILED), limit_s=0.1)
    with pytest.raises(TimeoutError, match=r"it took longer than 0\.05 s"), time_limit(0.05, "it"):
        try:
            time.sleep(30)
        except TimeoutError as error:
            raise RuntimeError("as torch wraps it") from error
    with time_limit(0.05, "nothing"):
        pass
    time.sleep(0.1)  # the alarm is off again


def test_a_form_that_cannot_be_captured_runs_as_it_is(monkeypatch):
    monkeypatch.setattr(torch_forms, "_captured", lambda call: None)
    peer = dense()
    peer._device = "cuda:0"
    ready = peer.ready(Form("float32", "NCHW"))
    assert not ready.graph and ready.outputs()[0].shape == (2, 6, 12, 12)
    monkeypatch.setattr(torch_forms, "_captured", lambda call: call)
    assert peer.ready(Form("float32", "NCHW")).graph


def test_a_graph_keeps_what_it_reads(monkeypatch):
    import gc
    import weakref
    from contextlib import nullcontext

    replays = []

    class Graph:
        def replay(self):
            replays.append(1)

    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **_: nullcontext())
    peer = dense()
    peer._device = "cuda:0"
    made = []
    convert = peer._converted
    monkeypatch.setattr(peer, "_converted", lambda *a: made.append(convert(*a)) or made[-1])
    ready = peer.ready(Form("float32", "NCHW"))
    weight, x = (weakref.ref(tensor) for tensor in (made[0][0].conv.weight, made[0][1][0]))
    made.clear()
    call = ready.call
    del ready
    gc.collect()
    before = len(replays)
    call()
    assert weight() is not None and x() is not None and len(replays) == before + 1
    del call
    gc.collect()
    assert weight() is None, "and no longer"


def test_the_onnxruntime_of_a_model(files):
    specs = tvm_sparse.load(files["onnx.so"]).inputs
    x = weights(2, 4, 12, 12)
    (found,) = dense_model(files["net.onnx"], specs).onnxruntime({"x": x}, 1)()
    module = dense_model(files["net.onnx"], specs).torch_module("cpu")
    np.testing.assert_allclose(found, module(torch.from_numpy(x)).numpy(), rtol=1e-4, atol=1e-5)
    renamed = [dataclasses.replace(specs[0], name="image")]
    with pytest.raises(InputError, match="no input named 'image'"):
        dense_model(files["net.onnx"], renamed)
    with pytest.raises(InputError, match="its inputs are x, those of the library image"):
        dense_model(files["net.pt2"], renamed)


def test_what_a_bound_call_writes_is_written_anew(monkeypatch):
    """Of a batch that was padded to the size compiled for only the images that were given count."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    class Bound:
        outputs = (torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64))

        def __call__(self):
            self.outputs[0][:, 0] = 3.0
            self.outputs[1][:] = 5

    first, second = _bound_outputs(Bound(), 3)
    assert first[:, 0].tolist() == [3.0] * 3 and np.isnan(first[:, 1]).all()
    assert second.tolist() == [5] * 3
    assert len(_bound_outputs(Bound(), None)[0]) == 4
