"""torch.export programs: what comes out computes the same and keeps the names of the modules."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.network.onnx_models import assert_matches_reference
from tvm_sparse.errors import InputError, ModelError, TvmSparseError
from tvm_sparse.network.imported import bindings_of, constant_filters, operator
from tvm_sparse.network.importer import import_model
from tvm_sparse.network.torch_import import import_torch

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional


class Small(nn.Module):  # type: ignore[name-defined, misc]
    """Bias before a batch norm, an asymmetric pad, depthwise, 1-D, and the activations the matcher knows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding="same"), nn.BatchNorm2d(8))
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, bias=False, groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.line = nn.Conv1d(8, 4, 3, padding=1)
        self.line_norm = nn.BatchNorm1d(4)
        generator = torch.Generator().manual_seed(0)
        for norm in (self.stem[1], self.norm, self.line_norm):
            for tensor in (norm.weight, norm.bias, norm.running_mean):
                tensor.data.normal_(generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)

    def forward(self, x: Any) -> Any:
        x = functional.pad(functional.relu6(self.stem(x)), (0, 1, 0, 1))
        x = functional.silu(self.norm(self.depthwise(x)))
        return functional.hardswish(x), functional.relu(self.line_norm(self.line(x.mean(3))))


class OneConv(nn.Module):  # type: ignore[name-defined, misc]
    def __init__(self, fill: float | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        if fill is not None:
            self.conv.weight.data[1, 2, 0, 1] = fill

    def forward(self, x: Any) -> Any:
        return self.conv(x)


class Odd(OneConv):
    def forward(self, x: Any) -> Any:
        return torch.linalg.svd(self.conv(x)).S


def example(*shape: int) -> tuple[Any, ...]:
    return (torch.zeros(*(shape or (2, 3, 16, 16))),)


def saved(
    module: Any, path: Path, dynamic: dict[int, str] | None = None, shape: tuple[int, ...] = (4, 3, 16, 16)
) -> Path:
    shapes = ({axis: torch.export.Dim(name, min=4) for axis, name in dynamic.items()},) if dynamic else None
    torch.export.save(torch.export.export(module, example(*shape), dynamic_shapes=shapes), path)
    return path


def test_a_saved_program_computes_the_same(tmp_path: Path) -> None:
    imported = import_model(saved(Small().eval(), tmp_path / "small.pt2"))
    assert imported.name == "small"
    assert [info.name for info in imported.convolutions] == ["stem.0", "depthwise", "line"]
    assert [spec.shape for spec in imported.inputs] == [(4, 3, 16, 16)]
    assert [spec.shape for spec in imported.outputs] == [(4, 8, 8, 8), (4, 4, 8)]
    names = [operator(value) for _, value in bindings_of(imported.module["main"])]
    conv = ["relax.nn.conv2d", "relax.add"]
    hard_swish = ["relax.add", "relax.clip", "relax.divide", "relax.multiply"]
    line = ["relax.mean", "relax.expand_dims", *conv, "relax.nn.relu", "relax.squeeze"]
    assert [name for name in names if name] == [*conv, "relax.clip", *conv, "relax.nn.silu", *hard_swish, *line]
    assert_matches_reference(imported)


def test_programs_and_modules_are_taken_from_memory() -> None:
    module = OneConv().eval()
    assert import_model(torch.export.export(module, example())).convolutions[0].name == "conv"
    assert import_torch(module, example()).convolutions[0].filter_shape == (4, 3, 3, 3)


def test_dynamic_dimensions_are_pinned(tmp_path: Path) -> None:
    path = saved(OneConv().eval(), tmp_path / "net.pt2", {0: "n", 2: "h"})
    imported = import_torch(path, shapes={"x": (5, 3, 9, 16)})
    assert imported.outputs[0].shape == (5, 4, 7, 14)
    assert_matches_reference(imported)
    batched = import_torch(saved(OneConv().eval(), path, {0: "n"}), batch=5)
    assert batched.inputs[0].shape == (5, 3, 16, 16)


def test_a_pruning_mask_is_folded_into_the_filter(tmp_path: Path) -> None:
    import torch.nn.utils.prune as prune

    module = OneConv()
    prune.l1_unstructured(module.conv, "weight", amount=0.75)
    imported = import_torch(saved(module.eval(), tmp_path / "net.pt2"))
    assert [info.name for info in imported.convolutions] == ["conv"]
    (weight,) = constant_filters(imported.module["main"])
    assert (weight != 0).sum() == 27
    assert_matches_reference(imported)


BAD: dict[str, tuple[Callable[[Path], object], dict[str, Any], type[TvmSparseError], list[str]]] = {
    "missing": (lambda path: None, {}, ModelError, ["no such file"]),
    "garbage": (lambda path: path.write_bytes(b"PK\x03\x04 nothing"), {}, ModelError, ["truncated, or not"]),
    "training": (lambda path: saved(Small(), path), {}, ModelError, ["training mode", ".eval()"]),
    "open batch": (
        lambda path: saved(OneConv().eval(), path, {0: "n"}), {}, ModelError, ["'x'", "dimension 0 (", "--batch N"],
    ),
    "open height": (
        lambda path: saved(OneConv().eval(), path, {2: "h"}), {}, ModelError, ["dimension 2 (", "--shape x=4x3x224x16"],
    ),
    "wrong batch": (lambda path: saved(OneConv().eval(), path), {"batch": 5}, InputError, ["batch 5", "fixed at 4"]),
    "wrong rank": (
        lambda path: saved(OneConv().eval(), path), {"shapes": {"x": (2, 3)}}, InputError, ["2x3", "4x3x16x16"],
    ),
    "wrong name": (
        lambda path: saved(OneConv().eval(), path), {"shapes": {"z": (2, 3)}}, InputError, ["'z'", "inputs are x"],
    ),
    "NaN": (lambda path: saved(OneConv(float("nan")).eval(), path), {}, ModelError, ["NaN", "'conv.weight'"]),
    "infinity": (lambda path: saved(OneConv(float("inf")).eval(), path), {}, ModelError, ["infinity", "'conv.weight'"]),
    "operator": (lambda path: saved(Odd().eval(), path), {}, ModelError, ["unsupported operators", "svd"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_program_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    write, options, kind, parts = BAD[name]
    path = tmp_path / "net.pt2"
    write(path)
    with pytest.raises(kind) as caught:
        import_model(path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_modules_need_eval_and_examples() -> None:
    with pytest.raises(ModelError, match=r"\.eval\(\)"):
        import_torch(OneConv(), example())
    with pytest.raises(InputError, match="example_inputs"):
        import_torch(OneConv().eval())


def test_without_torch_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModelError, match=r"pip install tvm-sparse\[torch\]"):
        import_model(tmp_path / "net.pt2")
