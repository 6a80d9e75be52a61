"""A tuning session of two small layers, which tests run here or in a process that they kill.

    python -m tests.tuning.small_session LOG TRIALS_PER_LAYER [TOLD]

Every trial is told to the file TOLD after it is in the log.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tvm_sparse.tuning.layers import Layer
from tvm_sparse.tuning.trials import Budget
from tvm_sparse.tuning.tuner import TunedLayer, tune
from tvm_sparse.workload import ConvWorkload, Epilogue


def small_layers() -> list[Layer]:
    """One 3x3 and one pointwise layer of 10 % nonzeros, the first with every epilogue."""
    rng = np.random.default_rng(0)
    workloads = (
        ConvWorkload(1, 8, 12, 12, 16, 3, 3, padding=(1, 1, 1, 1), epilogue=Epilogue(True, True, "relu")),
        ConvWorkload(2, 16, 6, 6, 24, 1, 1),
    )
    layers = []
    for name, workload in zip(("three", "one"), workloads, strict=True):
        weight = rng.standard_normal(workload.filter_shape) * (rng.random(workload.filter_shape) < 0.1)
        layers.append(Layer(name, workload.flattened(), weight.astype(np.float32)))
    return layers


def small_session(
    log: Path,
    trials: int,
    told: Callable[[Any], None] = lambda tally: None,
    *,
    layers: list[Layer] | None = None,
    tracker: tuple[str, int, str] | None = None,
    **changes: Any,
) -> list[TunedLayer]:
    """Tune the small layers, each for so many trials."""
    from dataclasses import replace

    from tvm_sparse.tuning.devices import setting_for

    setting = replace(setting_for("llvm", threads=1, tracker=tracker), builders=1, batch=4, **changes)
    return tune(layers or small_layers(), setting, Budget(per_layer=trials), log, told=told)


def main() -> None:
    log, trials, *told = sys.argv[1:]
    descriptor = os.open(told[0], os.O_WRONLY | os.O_CREAT | os.O_APPEND) if told else None

    def tell(tally: Any) -> None:
        if descriptor is not None:
            record = tally.records[-1]
            os.write(descriptor, f"{tally.layer.name} {record.point}\n".encode())

    small_session(Path(log), int(trials), tell)


if __name__ == "__main__":
    main()
