"""What the shipped tuning logs hold, as a table: layers, and how far tuning went beyond the defaults of its time."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

from benchmarks.markdown import table, times
from tvm_sparse.tuning.log_files import read_log, shipped_logs
from tvm_sparse.tuning.records import Record, class_density, density_class
from tvm_sparse.tuning.selection import best, by_key

HEAD = ("device", "batch", "zeros", "layers", "default over best, geometric mean", "largest", "best is the default")


def shipped_table() -> str:
    """A row per device, batch and density class of the layers with a default."""
    groups: dict[tuple[str, int, int], list[tuple[float, float]]] = defaultdict(list)
    for records in by_key(read_log(shipped_logs()).records).values():
        default = best(record for record in records if record.source == "default")
        fastest = best(records)
        alike = default is not None and fastest is not None and default.timer == fastest.timer
        if alike and default.time_us and fastest.time_us:
            first = records[0]
            place = (first.site.device, first.workload.n, density_class(first.density))
            groups[place].append((default.time_us, fastest.time_us))
    rows = [_row(place, pairs) for place, pairs in sorted(groups.items(), key=lambda item: item[0])]
    return f"{table(HEAD, rows)}\n\n{_winners()}"


def _row(place: tuple[str, int, int], pairs: list[tuple[float, float]]) -> list[str]:
    device, batch, number = place
    gains = [default / fastest for default, fastest in pairs]
    mean = math.exp(sum(map(math.log, gains)) / len(gains))
    unbeaten = sum(gain <= 1 for gain in gains)
    zeros = "none" if number == density_class(1.0) else f"{1 - class_density(number):.0%}"
    return [device, str(batch), zeros, str(len(pairs)), times(mean), times(max(gains)), str(unbeaten)]


def _winners() -> str:
    """Which templates are fastest, device by device."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for records in by_key(read_log(shipped_logs()).records).values():
        fastest: Record | None = best(records)
        if fastest is not None:
            counts[fastest.site.device][fastest.template] += 1
    lines = [
        f"{device}: " + ", ".join(f"{template} {number}" for template, number in found.most_common())
        for device, found in sorted(counts.items())
    ]
    return "Layers by their fastest template. " + "; ".join(lines) + "."
