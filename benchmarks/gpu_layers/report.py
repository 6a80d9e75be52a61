"""The record, read for tables, goals and figures: our time of a case beside those of its peers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.gpu_layers.store import Record, Store

ESCOIN = "escoin"


@dataclass(frozen=True)
class Measured:
    """A case with a time of ours; `peers_us` holds the microseconds of the peers that have one."""

    record: Record
    peers_us: dict[str, float]

    @property
    def us(self) -> float:
        return float(self.record["ours"]["time"]["median_us"])

    def ratio(self, peer: str) -> float | None:
        """How many times faster than the peer; None if the peer has no time."""
        return self.peers_us[peer] / self.us if peer in self.peers_us else None


class Report:
    """What a file of measurements says; without the file nothing was measured."""

    def __init__(self, path: Path, escoin: Path) -> None:
        self._store = Store(path)
        self._escoin = json.loads(escoin.read_text())

    @property
    def records(self) -> list[Record]:
        """All cases, those without a time among them."""
        return self._store.cases

    @property
    def runs(self) -> dict[int, Record]:
        """The runs that a case is from, by number."""
        return {number: self._store.runs[number] for number in sorted({record["run"] for record in self.records})}

    def measured(self, **fields: Any) -> list[Measured]:
        """The cases with a time whose fields have these values."""
        return [
            self._with_peers(record)
            for record in self.records
            if "ours" in record and all(_same(record[name], value) for name, value in fields.items())
        ]

    def reference(self, layers: Sequence[str], batch: int, sparsity: float, dtype: str = "float32") -> list[Measured]:
        """The random cases of some layers, in their order; those not measured are left out."""
        cases = self.measured(batch=batch, sparsity=sparsity, dtype=dtype, mask="random")
        found = {case.record["layer"]: case for case in cases}
        return [found[layer] for layer in layers if layer in found]

    def known_by(self, peer: str, layers: Sequence[str], batch: int) -> int:
        """For how many of the layers a peer can have a time: the ported Escoin was measured on some only."""
        if peer != ESCOIN:
            return len(layers)
        return sum(str(batch) in self._escoin["us"].get(layer, {}) for layer in layers)

    def _with_peers(self, record: Record) -> Measured:
        layer, batch = record["layer"], record["batch"]
        dense = {**self._store.dense(layer, batch), **self._store.dense(layer, batch, record["run"])}
        timings = {**dense, **record.get("sparse_peers", {})}
        times = {name: timing["median_us"] for name, timing in timings.items() if "median_us" in timing}
        ported = self._escoin["us"].get(layer, {}).get(str(batch))
        alike = {"mask": "random", "dtype": "float32", "sparsity": self._escoin["sparsity"]}
        if ported and all(_same(record[name], value) for name, value in alike.items()):
            times[ESCOIN] = ported
        return Measured(record, times)


def ratios(cases: Iterable[Measured], peer: str) -> list[float]:
    """How many times faster than the peer, for the cases in which it has a time."""
    return [ratio for case in cases if (ratio := case.ratio(peer)) is not None]


def geometric_mean(values: Sequence[float]) -> float | None:
    """None of no values."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def crossing(points: Iterable[tuple[float, float]]) -> float | None:
    """The sparsity from which on a speed-up stays above 1, by interpolating its logarithm between (sparsity, speed-up).

    0 if it is above 1 at all of them; None if it is below 1 at the last one, or there are none.
    """
    ordered = sorted(points)
    if not ordered or ordered[-1][1] < 1:
        return None
    for (z0, low), (z1, high) in reversed(list(pairwise(ordered))):
        if low < 1:
            return z0 + (z1 - z0) * -math.log(low) / (math.log(high) - math.log(low))
    return 0.0


def _same(a: Any, b: Any) -> bool:
    return abs(a - b) < 1e-6 if isinstance(a, float) and isinstance(b, (int, float)) else a == b
