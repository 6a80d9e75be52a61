"""What a log knows of a layer that is to be compiled: the records of its shape at the nearest density."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from tvm_sparse.tuning.records import Record, Site, density_class
from tvm_sparse.tuning.selection import best
from tvm_sparse.workload import ConvWorkload, Epilogue

#: Records of a density further away than this many classes (a factor of 4) say nothing of a layer.
FURTHEST = 8
#: Another epilogue is as far as half a class of density.
OTHER_EPILOGUE = 0.5


@dataclass(frozen=True)
class Match:
    """The fastest records of a layer's shape that run sparse and dense; either may be None.

    `match` is "exact" where workload and density class are the layer's own, else "nearest". Times in microseconds are
    those measured, the sparse one in proportion to the layer's density where that was another.
    """

    sparse: Record | None
    dense: Record | None
    sparse_us: float | None
    dense_us: float | None
    match: str
    origin: str

    def of(self, kind: str) -> Record | None:
        return self.sparse if kind == "sparse" else self.dense


class KnownKernels:
    """The records that count for one target."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._shapes: dict[ConvWorkload, list[Record]] = defaultdict(list)
        for record in records:
            if record.ok:
                self._shapes[_shape(record.workload)].append(record)

    @staticmethod
    def for_target(records: Iterable[Record], target: Any) -> KnownKernels:
        """Those measured on a target's GPU architecture, or on a CPU of its vector extension with as many threads.

        Of several devices of that kind the one with the same arch counts, then the one with the most records: times of
        two devices do not compare.
        """
        records = [record for record in records if _counts(record.site, target)]
        sites = Counter(record.site for record in records)
        arch = str(target.attrs.get("mcpu", target.attrs.get("arch", "")))
        chosen = max(sites, key=lambda site: (site.arch == arch, sites[site], site.device), default=None)
        return KnownKernels(record for record in records if record.site == chosen)

    def find(self, workload: ConvWorkload, density: float) -> Match | None:
        """The records of the layer itself, else of the nearest density of its shape, or None."""
        workload, own = workload.flattened(), density_class(density)
        groups: dict[tuple[int, Epilogue], list[Record]] = defaultdict(list)
        for record in self._shapes.get(_shape(workload), ()):
            groups[density_class(record.density), record.workload.epilogue].append(record)

        def distance(place: tuple[int, Epilogue]) -> tuple[float, int]:
            return abs(place[0] - own) + OTHER_EPILOGUE * (place[1] != workload.epilogue), place[0]

        place = min(groups, key=distance, default=None)
        if place is None or abs(place[0] - own) > FURTHEST:
            return None
        sparse, dense = best(groups[place], "sparse"), best(groups[place], "dense")
        exact = place == (own, workload.epilogue)
        scale = density / sparse.density if sparse is not None and sparse.density and place[0] != own else 1.0
        return Match(
            sparse,
            dense,
            sparse.time_us * scale if sparse is not None and sparse.time_us else None,
            dense.time_us if dense is not None else None,
            "exact" if exact else "nearest",
            "measured" if exact else f"measured {_elsewhere(place, density, workload, groups[place][0])}",
        )


def _elsewhere(place: tuple[int, Epilogue], density: float, workload: ConvWorkload, record: Record) -> str:
    """How the records that were found differ from the layer."""
    parts = []
    if place[0] != density_class(density):
        ratio = f", {record.density / density:.2g} of this layer's" if density else ""
        parts.append(f"at density {record.density:.2g}{ratio}")
    if place[1] != workload.epilogue:
        parts.append(f"with epilogue {place[1]}")
    return " and ".join(parts)


def _shape(workload: ConvWorkload) -> ConvWorkload:
    return replace(workload, epilogue=Epilogue())


def _counts(site: Site, target: Any) -> bool:
    from tvm_sparse.tuning.devices import cpu_site

    if target.kind.name == "cuda":
        return site.arch == str(target.attrs["arch"])
    if target.kind.name != "llvm" or not {"mcpu", "num-cores"} <= set(target.attrs):
        return False
    here = cpu_site(target)
    return (site.device, site.threads) == (here.device, here.threads)
