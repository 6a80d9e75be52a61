"""Convolutions that read the same tensor as one convolution, whose filter holds theirs one behind the other.

One kernel is launched in place of several, and the tensor is read once. Merged are layers of the same geometry and
activation, without residual and with one group, that run alike, sparse or dense; unless a log knows better: it has
measured that they take longer together, or, on a CPU, knows good knobs for each of them only. GoogLeNet gains 2 to 5 %
on a CPU of two cores and saves 18 of its launches on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tvm.target import Target

from tvm_sparse.network.decide import decide
from tvm_sparse.network.match import ConvLayer
from tvm_sparse.tuning.lookup import KnownKernels
from tvm_sparse.workload import Epilogue


def merge_siblings(
    layers: Sequence[ConvLayer], mode: str, target: Target, known: KnownKernels | None = None
) -> list[ConvLayer]:
    """The layers with siblings merged, each in the place of its first one; `mode` and `known` as for decide()."""
    groups: dict[Any, list[ConvLayer]] = {}
    for layer in layers:
        key = _key(layer, mode, target.kind.name == "cuda")
        groups.setdefault(id(layer) if key is None else key, []).append(layer)
    merged: list[ConvLayer] = []
    for group in groups.values():
        together = _merged(group) if len(group) > 1 else group[0]
        pays = len(group) == 1 or _pays(group, together, target, known)
        merged += [together] if pays else group
    return merged


def _key(layer: ConvLayer, mode: str, gpu: bool) -> Any:
    """What siblings have in common; None where a layer has none."""
    workload = layer.workload
    if workload is None or workload.groups > 1 or workload.epilogue.residual:
        return None
    decision = decide(layer, mode, gpu=gpu)
    if not decision.direct:
        return None
    alike = replace(workload, k=1, epilogue=replace(workload.epilogue, bias=False))
    return layer.x, alike, decision.kind


def _merged(group: Sequence[ConvLayer]) -> ConvLayer:
    first = group[0].workload
    assert first is not None
    biased = any(layer.bias is not None for layer in group)
    biases = [np.zeros(len(layer.weight), np.float32) if layer.bias is None else layer.bias for layer in group]
    epilogue: Epilogue = replace(first.epilogue, bias=biased)
    return replace(
        group[0],
        name=_name([layer.name for layer in group]),
        workload=replace(first, k=sum(len(layer.weight) for layer in group), epilogue=epilogue),
        weight=np.concatenate([layer.weight for layer in group]),
        bias=np.concatenate(biases) if biased else None,
        merged=tuple(group),
    )


def _name(names: Sequence[str]) -> str:
    """The names with what they begin with, up to a separator, only once: "inception_3a/1x1 + 3x3_reduce"."""
    first, last = min(names), max(names)
    alike = next((at for at, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), 0)
    end = max(first.rfind("/", 0, alike), first.rfind(".", 0, alike)) + 1
    return " + ".join([names[0], *(name[end:] for name in names[1:])])


def _pays(group: Sequence[ConvLayer], together: ConvLayer, target: Target, known: KnownKernels | None) -> bool:
    merged_us = _measured_us(together, known)
    apart_us = [_measured_us(layer, known) for layer in group]
    if None in apart_us:
        return True
    if merged_us is None:
        return target.kind.name == "cuda"  # where a launch less is worth more than tuned knobs
    return merged_us < sum(time for time in apart_us if time is not None)


def _measured_us(layer: ConvLayer, known: KnownKernels | None) -> float | None:
    assert layer.workload is not None
    match = known.find(layer.workload, layer.density) if known is not None else None
    times = [time for time in (match.sparse_us, match.dense_us) if time] if match is not None else []
    return min(times, default=None)
