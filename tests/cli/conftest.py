"""Stand-ins for the Python calls below the command line: each records how it was called."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import tvm_sparse


@dataclass
class Calls:
    """What the stand-ins were called with, and what each shall answer (a value, or an exception to raise)."""

    seen: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    answers: dict[str, Any] = field(default_factory=dict)

    def stand_in(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.seen.append((name, args, kwargs))
            answer = self.answers.get(name)
            if isinstance(answer, BaseException):
                raise answer
            return answer(*args, **kwargs) if callable(answer) else answer

        return call

    @property
    def last(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        return self.seen[-1]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The public calls replaced; into the namespace itself, because looking the real ones up would load TVM."""
    calls = Calls()
    for name in ("inspect", "compile", "load", "verify", "bench"):
        monkeypatch.setitem(vars(tvm_sparse), name, calls.stand_in(name))
    for module, name in (("tvm_sparse.prune", "prune_file"), ("tvm_sparse.deploy.environment", "collect_env")):
        stub = types.ModuleType(module)
        setattr(stub, name, calls.stand_in(name))
        monkeypatch.setitem(sys.modules, module, stub)
    return calls


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"")
    return path
