"""What is tuned for: this machine's CPU, all its GPUs of one kind, or what a fleet has."""

from __future__ import annotations

import pytest

from tvm_sparse.errors import CompileError, InputError
from tvm_sparse.tuning import devices
from tvm_sparse.tuning.devices import cpu_site, gpu_site, local_gpus, setting_for
from tvm_sparse.tuning.measuring import Place
from tvm_sparse.tuning.records import Site

H200, A100 = gpu_site("NVIDIA H200", "9.0"), gpu_site("NVIDIA A100-SXM4-80GB", "8.0")
FLEET = ("127.0.0.1", 9190, "k")


def test_this_cpu() -> None:
    setting = setting_for("llvm", threads=1)
    assert setting.site == cpu_site(setting.target) and setting.site.threads == 1
    assert setting.places == (Place("cpu", threads=1),) and setting.archs == ()


@pytest.mark.parametrize(
    ("mcpu", "device"), [("skylake-avx512", "llvm-avx512"), ("haswell", "llvm-avx2"), ("nehalem", "llvm-generic")]
)
def test_a_cpu_is_named_by_its_vectors(mcpu: str, device: str) -> None:
    setting = setting_for("llvm", mcpu=mcpu, threads=4, tracker=FLEET)
    assert setting.site == Site(device, mcpu, 4) and setting.tracker == FLEET


def test_all_gpus_of_one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "local_gpus", lambda: [H200, A100, H200])
    setting = setting_for("cuda")
    assert setting.site == Site("nvidia-h200", "sm_90") and setting.archs == ("sm_90",)
    assert setting.places == (Place("cuda", 0), Place("cuda", 2))
    assert str(setting.target.attrs["arch"]) == "sm_90"
    assert setting_for("cuda", arch="sm_90").site == H200
    with pytest.raises(InputError, match="--arch sm_80: the GPU that measures is nvidia-h200, sm_90"):
        setting_for("cuda", arch="sm_80")


def test_the_gpus_of_a_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "remote_device", lambda tracker, kind: ("NVIDIA A100-SXM4-80GB", "8.0"))
    setting = setting_for("cuda", tracker=FLEET)
    assert setting.site == Site("nvidia-a100-sxm4-80gb", "sm_80") and setting.tracker == FLEET


def test_no_gpu_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "list_gpus", list)
    with pytest.raises(InputError, match="no CUDA GPU here to tune on"):
        local_gpus()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"kind": "metal"}, InputError),
        ({"kind": "llvm", "mcpu": "unheard"}, CompileError),
        ({"kind": "llvm", "mcpu": "penryn"}, InputError),
        ({"kind": "llvm", "arch": "sm_90"}, InputError),
    ],
)
def test_wrong_options(options: dict, error: type[Exception]) -> None:
    with pytest.raises(error):
        setting_for(**options)
