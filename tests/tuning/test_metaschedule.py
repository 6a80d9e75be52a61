"""How many trials are under way at once: as many as keep the builders busy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tvm_sparse.targets import make_target
from tvm_sparse.tuning import metaschedule
from tvm_sparse.tvm_support import without_tensor_intrinsics


@pytest.mark.parametrize(
    ("layers", "under_way", "lanes"),
    [(1, 0, 2), (1, 32, 6), (3, 32, 6), (12, 32, 12), (12, 0, 12), (5, 64, 15)],
)
def test_lanes(monkeypatch: pytest.MonkeyPatch, layers: int, under_way: int, lanes: int) -> None:
    begun: list[Any] = []
    scheduler = SimpleNamespace(tune=lambda contexts, *_: begun.extend(contexts))
    monkeypatch.setattr(metaschedule.ms.task_scheduler, "RoundRobin", lambda: scheduler)
    tasks: list[Any] = [SimpleNamespace(layer=SimpleNamespace(name=str(n), count=1)) for n in range(layers)]
    with without_tensor_intrinsics():
        metaschedule.tune_tasks(
            tasks, make_target("llvm", threads=1), None, None, batch=6, evenly=True, seed=0, under_way=under_way
        )
    names = [context.task_name for context in begun]
    assert len(names) == lanes and {names.count(name) for name in names} == {lanes // layers}
