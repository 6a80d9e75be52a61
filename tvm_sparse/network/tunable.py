"""The layers of a network that there is something to tune for."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from tvm_sparse.errors import InputError
from tvm_sparse.network.decide import decide
from tvm_sparse.network.imported import ImportedModel
from tvm_sparse.network.match import match_layers
from tvm_sparse.tuning.layers import Layer, distinct


def tunable_layers(models: Iterable[ImportedModel], patterns: Iterable[str] = ()) -> list[Layer]:
    """The distinct layers of some networks that a template of ours runs, sparse or dense.

    Parameters
    ----------
    patterns : names or shell patterns of the layers wanted; none wants all

    Raises
    ------
    InputError
        A pattern fits no layer.
    """
    models, wanted = list(models), list(patterns)
    layers, names = [], []
    for model in models:
        for layer in match_layers(model.module["main"], model.convolutions):
            names.append(layer.name)
            decision = decide(layer, "auto")
            if layer.workload is None or not decision.direct or not _fits(layer.name, wanted):
                continue
            name = layer.name if len(models) == 1 else f"{model.name}:{layer.name}"
            layers.append(Layer(name, layer.workload, layer.weight, decision.kind))
    for pattern in wanted:
        if not any(_fits(name, [pattern]) for name in names):
            raise InputError(f"--layers {pattern}: fits none of the layers {', '.join(names)}")
    return distinct(layers)


def _fits(name: str, patterns: list[str]) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
