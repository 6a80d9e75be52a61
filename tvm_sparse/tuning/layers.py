"""The layers to tune: what is the same to a schedule is tuned once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from numpy.typing import NDArray

from tvm_sparse.tuning.records import Rows, density_class
from tvm_sparse.workload import ConvWorkload


@dataclass(frozen=True, eq=False)
class Layer:
    """One distinct layer: shape, filter (k, c/groups, r, s), how often it occurs, and what runs it untuned.

    The workload is flattened: the pixels of a pointwise convolution are one row. `untuned` is "sparse" or "dense".
    """

    name: str
    workload: ConvWorkload
    weight: NDArray = field(repr=False)
    untuned: str = "sparse"
    count: int = 1

    @property
    def density(self) -> float:
        return float((self.weight != 0).mean())

    @property
    def rows(self) -> Rows:
        return Rows.of(self.weight)


def distinct(layers: Iterable[Layer]) -> list[Layer]:
    """One layer of every workload and density class, in the order they come, with their counts added."""
    found: dict[tuple[ConvWorkload, int], Layer] = {}
    for layer in layers:
        workload = layer.workload.flattened()
        key = workload, density_class(layer.density)
        first = found.get(key)
        found[key] = (
            replace(layer, workload=workload) if first is None else replace(first, count=first.count + layer.count)
        )
    return list(found.values())
