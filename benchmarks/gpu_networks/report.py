"""The record, read for tables and goals: our time of a case beside torch's best in each precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_layers.store import Record, Store
from benchmarks.gpu_networks.cases import LINEAR_TOO, PUBLISHED, SEEDED

PRECISIONS = ("float32", "TF32", "float16")
COMPILED = "torch.compile"
NAMES = {
    "resnet50": "ResNet-50",
    "googlenet": "GoogLeNet",
    "alexnet": "AlexNet",
    "vgg16": "VGG-16",
    "mobilenetv1": "MobileNetV1",
}


@dataclass(frozen=True)
class Measured:
    """A case with a time of ours."""

    record: Record

    @property
    def us(self) -> float:
        return float(self.record["ours"]["median_us"])

    @property
    def error(self) -> float:
        """Against onnxruntime; beyond its largest batch, against torch in float64."""
        return float(self.record.get("onnxruntime_error", self.record["relative_error"]))

    def best(self, precision: str, *, compiled: bool = False, layouts: Sequence[str] = ()) -> Record | None:
        """The fastest form of torch in a precision, eager or through torch.compile; None where none has a time."""
        peers = [
            peer
            for peer in self.record["peers"]
            if peer["time"] is not None
            and peer["precision"] == precision
            and peer["how"].startswith(COMPILED) == compiled
            and (not layouts or peer["layout"] in layouts)
        ]
        return min(peers, key=lambda peer: peer["time"]["median_us"], default=None)

    def ratio(self, precision: str, *, layouts: Sequence[str] = ()) -> float | None:
        """How many times faster than the fastest eager form in a CUDA graph."""
        best = self.best(precision, layouts=layouts)
        return None if best is None else float(best["speed_up"])


class Report:
    """What a file of measurements says; without the file nothing was measured."""

    def __init__(self, path: Path) -> None:
        self._store = Store(path)

    @property
    def records(self) -> list[Record]:
        """All cases, those without a time among them, in the order of networks and batches."""
        return sorted(self._store.cases, key=_order)

    @property
    def runs(self) -> dict[int, Record]:
        """The runs that a case is from, by number."""
        return {number: self._store.runs[number] for number in sorted({record["run"] for record in self.records})}

    def measured(self, **fields: Any) -> list[Measured]:
        """The cases with a time whose fields have these values."""
        return [
            Measured(record)
            for record in self.records
            if "ours" in record and all(record.get(name) == value for name, value in fields.items())
        ]

    def case(
        self, network: str, batch: int, *, sparsity: float = 0.9, weights: str = SEEDED, precision: str = "float32"
    ) -> Measured | None:
        """One case, None where it has no time."""
        found = self.measured(network=network, batch=batch, sparsity=sparsity, weights=weights, precision=precision)
        return found[0] if found else None


def _order(record: Record) -> tuple[Any, ...]:
    weights = (SEEDED, LINEAR_TOO, PUBLISHED).index(record["weights"])
    return record["network"], record["precision"], weights, -record["sparsity"], record["batch"]
