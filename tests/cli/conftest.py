"""Stand-ins for the Python calls below the command line: each records how it was called."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

# (module that has the real call, its name, module in which the commands look it up)
USED = [
    ("tvm_sparse.api", "inspect", "tvm_sparse"),
    ("tvm_sparse.api", "compile", "tvm_sparse"),
    ("tvm_sparse.api", "tune", "tvm_sparse"),
    ("tvm_sparse.api", "verify", "tvm_sparse"),
    ("tvm_sparse.deploy", "load", "tvm_sparse"),
    ("tvm_sparse.deploy", "bench", "tvm_sparse"),
    ("tvm_sparse.deploy", "profile", "tvm_sparse"),
    ("tvm_sparse.deploy.environment", "collect_env", "tvm_sparse.deploy.environment"),
    ("tvm_sparse.prune", "prune_file", "tvm_sparse.prune"),
]


@dataclass
class Calls:
    """What the stand-ins were called with, and what each shall answer (a value, or an exception to raise)."""

    seen: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    answers: dict[str, Any] = field(default_factory=dict)

    def stand_in(self, home: str, name: str) -> Callable[..., Any]:
        """Takes only what the real call would take."""
        signature = inspect.signature(getattr(import_module(home), name))

        def call(*args: Any, **kwargs: Any) -> Any:
            signature.bind(*args, **kwargs)
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
    """The Python calls replaced where the commands find them."""
    calls = Calls()
    for home, name, place in USED:
        monkeypatch.setitem(vars(import_module(place)), name, calls.stand_in(home, name))
    return calls


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"")
    return path
