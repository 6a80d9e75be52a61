"""Which torch tensors a call takes as they are; the CPU stands in for the GPU."""

from __future__ import annotations

from typing import Any

import pytest
import tvm_ffi

from tvm_sparse.deploy import TensorSpec
from tvm_sparse.deploy.torch_calls import TorchCalls

torch = pytest.importorskip("torch")
SPEC = TensorSpec("x", (4, 8), "float32")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> TorchCalls:
    made = TorchCalls(tvm_ffi, 0, [SPEC])
    monkeypatch.setattr(made, "_place", torch.device("cpu"))
    return made


def plain() -> Any:
    return torch.zeros(4 * 8 + 16)[:32].reshape(4, 8)


@pytest.mark.parametrize(
    ("values", "fit"),
    [
        ([plain()], True),
        ([plain(), plain()], False),
        ([], False),
        ([plain().double()], False),
        ([plain().reshape(8, 4)], False),
        ([plain().reshape(8, 4).T], False),
        ([torch.zeros(33)[1:].reshape(4, 8)], False),  # starts 4 bytes off
        ([plain().requires_grad_()], False),
        ([torch.nn.Parameter(plain())], False),
        ([plain().numpy()], False),
        ([None], False),
        ([torch.zeros(4, 8, device="meta")], False),
    ],
)
def test_what_is_taken_as_it_is(calls: TorchCalls, values: list[Any], fit: bool) -> None:
    assert calls.fit(values) == fit


def test_inputs_that_vary_are_always_looked_at() -> None:
    assert not TorchCalls(tvm_ffi, 0, []).fit([])


def test_memory_is_shared(calls: TorchCalls) -> None:
    (tensor,) = calls.new([SPEC])
    (shared,) = calls.shared([tensor])
    assert (tensor.shape, tensor.dtype) == ((4, 8), torch.float32)
    assert shared.data_ptr() == tensor.data_ptr()


def test_tvm_launches_on_torchs_stream(calls: TorchCalls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_current", lambda index: 0x7F00000000AA + index)
    with calls.stream():
        stream = tvm_ffi.get_raw_stream(tvm_ffi.device("cuda", 0))
    assert int(getattr(stream, "value", stream)) == 0x7F00000000AA
