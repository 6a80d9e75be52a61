"""What the cost model sees of a point: numbers that mean the same for every layer and template."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from itertools import combinations

from tvm_sparse.tuning.records import Rows
from tvm_sparse.tuning.space import Point
from tvm_sparse.workload import ConvWorkload


def layer_features(workload: ConvWorkload, density: float, rows: Rows) -> dict[str, float]:
    """Of a layer: its sizes on a logarithmic scale and how its nonzeros are spread."""
    sizes = {
        "n": workload.n,
        "c": workload.c_per_group,
        "k": workload.k_per_group,
        "groups": workload.groups,
        "p": workload.p,
        "q": workload.q,
        "pixels": workload.n * workload.p * workload.q,
        "kernel": workload.r * workload.s,
        "outputs": workload.n * workload.k * workload.p * workload.q,
        "row": max(1.0, density * workload.c_per_group * workload.r * workload.s),
        "stride": workload.stride[0] * workload.stride[1],
    }
    features = {name: math.log2(size) for name, size in sizes.items()}
    features["density"] = math.log2(max(density, 1e-4))
    features["longest"] = rows.longest / max(1.0, rows.median)
    features["residual"] = float(workload.epilogue.residual)
    return features


@lru_cache(maxsize=2**16)
def point_features(workload: ConvWorkload, point: Point) -> dict[str, float]:
    """Of a point on a layer: every knob, and how often and how evenly it goes into the layer's dimensions."""
    features = {f"template {point.template}": 1.0}
    numbers: dict[str, int] = {}
    for knob, value in point.knobs.items():
        if isinstance(value, int):
            numbers[knob] = value
            continue
        name, _, size = value.partition(":")
        features[f"{knob} {name}"] = 1.0
        if size.isdecimal():
            numbers[f"{knob} {name} size"] = int(size)
    features.update({knob: math.log2(value + 0.5) for knob, value in numbers.items()})
    for (one, a), (other, b) in combinations(numbers.items(), 2):
        features[f"{one} * {other}"] = math.log2((a + 0.5) * (b + 0.5))
    for knob, value in numbers.items():
        features.update(_into(workload, knob, max(1, value)))
    return features


def _into(workload: ConvWorkload, knob: str, value: int) -> Mapping[str, float]:
    """Parts of each dimension that a knob's value makes, and the share of the last one that is in vain."""
    features = {}
    dimensions = {"p": workload.p, "q": workload.q, "c": workload.c_per_group, "k": workload.k_per_group}
    for name, size in dimensions.items():
        parts = -(-size // value)
        features[f"{name} / {knob}"] = math.log2(parts)
        features[f"{name} % {knob}"] = parts * value / size
    return features
