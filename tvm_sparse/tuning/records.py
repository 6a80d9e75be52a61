"""One measurement as one line of JSON: what ran, where, how fast, and what went wrong if anything did."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_sparse.errors import InputError
from tvm_sparse.workload import ConvWorkload, Epilogue

#: Raised whenever a reader of the version before would misunderstand a record.
FORMAT = 1
OUTCOMES = ("ok", "build_failed", "run_failed", "timeout", "wrong")
#: Of a candidate that was timed in turn with the default, cold: whether it was faster beyond doubt. "default" is the
#: default itself, and of others nothing is known.
CONFIRMED = ("", "default", "yes", "no")
#: The timer of kernels that began before those in front of them had ended.
OVERLAP = "overlap"
#: How a filter runs: on its nonzeros, or in blocks of channels that share columns, zeros and all.
KINDS = ("sparse", "dense")
#: Density classes are a quarter of an octave wide and centred on 10 %, so that 5, 10 and 20 % are centres too.
CLASSES_PER_OCTAVE, CENTRE, SMALLEST = 4, 0.1, 1e-4

Knobs = dict[str, int | str]


def density_class(density: float) -> int:
    """The class of a density; layers of one class and shape share what was found for either."""
    return round(CLASSES_PER_OCTAVE * math.log2(max(density, SMALLEST) / CENTRE))


def class_density(number: int) -> float:
    """The density at the centre of a class."""
    return min(1.0, CENTRE * 2 ** (number / CLASSES_PER_OCTAVE))


@dataclass(frozen=True)
class Rows:
    """Nonzeros per output channel of a filter, and a hash of where they stand."""

    median: float
    longest: int
    empty: int
    pattern: str

    @staticmethod
    def of(weight: NDArray) -> Rows:
        """Of a filter (k, c/groups, r, s)."""
        mask = weight != 0
        lengths = mask.reshape(len(weight), -1).sum(axis=1)
        digest = hashlib.sha256(repr(weight.shape).encode() + np.packbits(mask).tobytes())
        empty = int((lengths == 0).sum())
        return Rows(float(np.median(lengths)), int(lengths.max(initial=0)), empty, digest.hexdigest()[:12])


@dataclass(frozen=True)
class Site:
    """Where something is measured, and so where it counts: the device's folder, its arch and, on a CPU, its threads.

    `device` is like "nvidia-h200" or "llvm-avx512"; `arch` like "sm_90" or LLVM's name of the CPU.
    """

    device: str
    arch: str
    threads: int | None = None


@dataclass(frozen=True)
class Record:
    """One trial of one layer. Times are of one call, in microseconds: the lower quartile and the
    distance of the quartiles of `repeats` timings.

    `error` is the relative error against float64, or None where nothing could be compared; `layer`,
    `source` (default, seed, transfer, guided or random) and `timer` (graph, overlap, events or cold) say how it
    came about; `confirmed` is one of CONFIRMED.
    """

    site: Site
    workload: ConvWorkload
    density: float
    rows: Rows
    template: str
    knobs: Knobs
    kind: str
    outcome: str
    time_us: float | None = None
    spread_us: float | None = None
    repeats: int = 0
    error: float | None = None
    message: str = ""
    layer: str = ""
    source: str = ""
    timer: str = ""
    confirmed: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    date: str = ""

    @property
    def ok(self) -> bool:
        return self.outcome == "ok"

    @property
    def point(self) -> tuple[str, str]:
        """What was tried: the template and its knobs."""
        return self.template, canonical(self.knobs)

    @property
    def key(self) -> tuple[Site, ConvWorkload, int]:
        """What it was tried on: records of one key compare."""
        return self.site, self.workload, density_class(self.density)


def canonical(knobs: Mapping[str, int | str]) -> str:
    """Knobs as text that does not depend on their order."""
    return json.dumps(knobs, sort_keys=True)


def to_line(record: Record) -> str:
    """A record as one line of JSON, without the line's end."""
    values = asdict(record)
    site = values.pop("site")
    return json.dumps({"format": FORMAT, **site, **values}, ensure_ascii=False, allow_nan=False)


def from_line(line: str) -> Record:
    """The record that to_line wrote.

    Raises
    ------
    InputError
        The line is torn, garbled or of another format; the message says which, without a place.
    """
    try:
        values = json.loads(line)
    except ValueError:
        raise InputError("not a whole line of JSON") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise InputError(f"not a record of format {FORMAT}")
    try:
        return _record({name: value for name, value in values.items() if name != "format"})
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"not a whole record: {type(error).__name__}: {error}") from None


def _record(values: dict[str, Any]) -> Record:
    site = Site(**{name.name: values.pop(name.name) for name in fields(Site)})
    record = Record(
        **{
            **values,
            "site": site,
            "workload": workload_from(values["workload"]),
            "rows": Rows(**values["rows"]),
        }
    )
    _check(record)
    return record


def workload_from(values: Mapping[str, Any]) -> ConvWorkload:
    """A workload from the plain values of its fields."""
    epilogue = dict(values["epilogue"])
    lists = {name: tuple(values[name]) for name in ("stride", "padding", "dilation")}
    bounds = tuple(epilogue.pop("bounds"))
    return ConvWorkload(**{**values, **lists, "epilogue": Epilogue(**epilogue, bounds=bounds)})


def _check(record: Record) -> None:
    """Refuse values of the wrong type, which the dataclass lets pass."""
    site, workload = record.site, record.workload
    texts = (site.device, site.arch, record.template, record.kind, record.outcome, record.message, workload.dtype)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a text is none")
    sizes = (getattr(workload, name) for name in ("n", "c", "h", "w", "k", "r", "s", "groups"))
    counts = (*sizes, *workload.stride, *workload.padding, *workload.dilation, record.repeats)
    if not all(type(count) is int for count in counts) or not isinstance(site.threads, int | None):
        raise ValueError("a count is no integer")
    if not isinstance(record.knobs, dict) or not all(type(value) in (int, str) for value in record.knobs.values()):
        raise ValueError("knobs are not plain integers and texts")
    if record.outcome not in OUTCOMES or record.kind not in KINDS:
        raise ValueError(f"unknown outcome or kind {record.outcome!r} {record.kind!r}")
    if record.confirmed not in CONFIRMED:
        raise ValueError(f"confirmed is {record.confirmed!r}")
    numbers = (record.density, record.time_us, record.spread_us, record.error)
    if not all(number is None or isinstance(number, int | float) for number in numbers):
        raise ValueError("a number is none")
    if not 0 <= record.density <= 1:
        raise ValueError(f"density {record.density}")
    if record.ok and not (record.time_us and math.isfinite(record.time_us) and record.time_us > 0):
        raise ValueError(f"time {record.time_us} µs")
