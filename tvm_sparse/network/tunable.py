"""The layers of a network that there is something to tune for."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from tvm.target import Target

from tvm_sparse.errors import InputError
from tvm_sparse.network.decide import decide
from tvm_sparse.network.imported import ImportedModel
from tvm_sparse.network.plan import planned_layers
from tvm_sparse.tuning.layers import Layer, distinct


def tunable_layers(models: Iterable[ImportedModel], target: Target, patterns: Iterable[str] = ()) -> list[Layer]:
    """The distinct layers of some networks that a template of ours runs, sparse or dense.

    Of those that run with their stride or without it, whichever is faster, both.

    Parameters
    ----------
    target : what they are tuned for, which decides which layers are merged into one
    patterns : names or shell patterns of the layers wanted, merged ones also by a name of theirs; none wants all

    Raises
    ------
    InputError
        A pattern fits no layer.
    """
    models, wanted = list(models), list(patterns)
    layers, names = [], []
    for model in models:
        planned = planned_layers(model, "auto", target, everywhere=True)
        for layer in (form for each in planned for form in (each, each.strided) if form is not None):
            own = [layer.name, *(part.name for part in layer.merged)]
            names += own
            decision = decide(layer, "auto", gpu=target.kind.name == "cuda")
            if layer.workload is None or not decision.direct or not any(_fits(name, wanted) for name in own):
                continue
            name = layer.name if len(models) == 1 else f"{model.name}:{layer.name}"
            layers.append(Layer(name, layer.workload, layer.weight, decision.kind))
    for pattern in wanted:
        if not any(_fits(name, [pattern]) for name in names):
            raise InputError(f"--layers {pattern}: fits none of the layers {', '.join(dict.fromkeys(names))}")
    return distinct(layers)


def _fits(name: str, patterns: list[str]) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
