"""Which records matter: the best of every key, without doubles."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from tvm_sparse.tuning.records import OVERLAP, Record


def by_key(records: Iterable[Record]) -> dict[tuple, list[Record]]:
    """Records that compare (same device, arch, threads, workload and density class), keys as they first come."""
    groups: dict[tuple, list[Record]] = defaultdict(list)
    for record in records:
        groups[record.key].append(record)
    return dict(groups)


def best(records: Iterable[Record], kind: str | None = None) -> Record | None:
    """The fastest that is right, of one kind if named.

    Once some were timed in turn with the default, only what was faster then and the default itself count, by the last
    such comparison. Kernels that overlapped take less than by themselves: where some did, the others do not count.
    """
    right = [record for record in records if record.ok]
    right = [record for record in right if record.timer == OVERLAP] or right
    last = max((record.date for record in right if record.confirmed), default=None)
    if last is not None:
        right = [record for record in right if record.confirmed in ("default", "yes") and record.date == last]
    return min((record for record in right if kind in (None, record.kind)), key=_time, default=None)


def deduplicated(records: Iterable[Record]) -> list[Record]:
    """One record of every point of every key: the last that was timed in turn with the default if any was, else the
    fastest if any is right, else the latest.
    """
    chosen: dict[tuple, Record] = {}
    for record in records:
        place = (record.key, record.point)
        other = chosen.get(place)
        if other is None or not other.ok or (record.ok and _supersedes(record, other)):
            chosen[place] = record
    return list(chosen.values())


def pruned(records: Iterable[Record], keep: int) -> list[Record]:
    """Of every key the `keep` fastest records, and beside them the fastest dense one, sparse one and default."""
    kept: list[Record] = []
    for group in by_key(deduplicated(records)).values():
        right = sorted((record for record in group if record.ok), key=_time)
        wanted = [*right[:keep], best(right, "dense"), best(right, "sparse")]
        wanted += [record for record in right if record.source == "default"]
        kept += [record for record in right if any(record is one for one in wanted)]
    return kept


def _supersedes(record: Record, other: Record) -> bool:
    if record.confirmed or other.confirmed:
        return bool(record.confirmed) and (not other.confirmed or record.date >= other.date)
    return _time(record) <= _time(other)


def _time(record: Record) -> float:
    assert record.time_us is not None
    return record.time_us
