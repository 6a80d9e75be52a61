"""collect_env: plain values, quick, whatever is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tvm_sparse.deploy import environment


def test_it_is_plain_and_names_what_runs_here():
    values = environment.collect_env()
    assert json.loads(json.dumps(values)) == values
    assert values["python"] == sys.version.split()[0]
    assert values["packages"]["apache-tvm-ffi"] == "0.1.14.post1"
    assert values["logical_cpus"] >= values["default_threads"] >= 1


@pytest.mark.parametrize("what", ["nothing installed", "everything hangs"])
def test_missing_or_hanging_tools_are_none(monkeypatch, tmp_path, what):
    if what == "everything hangs":
        for name in ("nvidia-smi", "nvcc", "g++"):
            (tmp_path / name).write_text("#!/bin/sh\nexec sleep 60\n")
            (tmp_path / name).chmod(0o755)
        monkeypatch.setattr(environment, "_TIMEOUT_S", 0.2)
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    else:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(environment, "find_nvcc", lambda: None)
    for name in ("CXX", "CC", "CUDA_PATH", "CUDA_HOME"):
        monkeypatch.delenv(name, raising=False)
    values = environment.collect_env()
    assert (values["cuda"]["gpus"], values["cuda"]["nvcc"], values["cxx_compiler"]) == (None, None, None)


def test_gpus_are_listed(monkeypatch, tmp_path):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA H200, 580.1, 9.0'\necho 'NVIDIA H200, 580.1, 9.0'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert environment.collect_env()["cuda"]["gpus"] == ["NVIDIA H200, 580.1, 9.0"] * 2


def test_nothing_heavy_is_imported():
    code = """
import sys
from tvm_sparse.deploy.environment import collect_env
collect_env()
print([name for name in ("tvm", "tvm_ffi", "torch", "onnx", "onnxruntime", "numpy") if name in sys.modules])
"""
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
