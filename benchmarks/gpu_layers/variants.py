"""What of ours is tried on a case: each template with its default knobs, what `compile` would take from a tuning log
for the layer, bare and with bias and ReLU as most stand in a network, and the knobs of a candidates file. Where
`compile` lets kernels overlap, each is tried so and without.

A candidates file is a list of

    {"template": "cuda_pixel", "layers": "r50_14_*", "batch": 32, "sparsity": 0.9, "dtype": "float32",
     "knobs": [{"warps": 4}, {"warps": 8, "channels": 16}]}

in which all but `template` and `knobs` may be left out to match every case; knobs are changes to the default.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu_layers.cases import Case
from tvm_sparse.errors import InputError
from tvm_sparse.workload import Epilogue

if TYPE_CHECKING:
    from tvm_sparse.tuning.lookup import KnownKernels

#: Measured only where nothing else runs: it is right, and slow.
LAST_RESORT = "fallback"
#: What stands behind a layer where a log is asked for it.
EPILOGUES = (Epilogue(), Epilogue(bias=True, activation="relu"))
_FIELDS = {"template", "layers", "batch", "sparsity", "dtype", "knobs"}


@dataclass(frozen=True)
class Candidate:
    """One row of a candidates file."""

    template: str
    knobs: tuple[dict[str, int | str], ...]
    layers: str = "*"
    batch: int | None = None
    sparsity: float | None = None
    dtype: str | None = None

    def matches(self, case: Case) -> bool:
        return (
            fnmatch(case.layer, self.layers)
            and self.batch in (None, case.batch)
            and (self.sparsity is None or abs(self.sparsity - case.sparsity) < 1e-6)
            and self.dtype in (None, case.dtype)
        )


@dataclass(frozen=True)
class Variant:
    """A template with complete knobs; `default` if they are its own choice.

    `logged` says how the layer's record was found that `compile` takes them from, "exact" or "nearest", if it does.
    With `overlap` each of its kernels begins while the one in front of it still runs.
    """

    template: str
    knobs: dict[str, int | str]
    default: bool
    logged: str = ""
    overlap: bool = False

    @property
    def last_resort(self) -> bool:
        return self.template == LAST_RESORT


def read_candidates(path: Path) -> list[Candidate]:
    """Read a candidates file.

    Raises
    ------
    InputError
        It is not as described above.
    """
    try:
        rows = json.loads(path.read_text())
        found = []
        for row in rows:
            if unknown := set(row) - _FIELDS:
                raise InputError(f"{path}: unknown fields {sorted(unknown)}: there are {sorted(_FIELDS)}")
            found.append(Candidate(**{**row, "knobs": tuple(row["knobs"])}))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not a list of candidates: {type(error).__name__}: {error}") from error
    return found


def winners(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a candidates file: for each measured case whose fastest knobs are no default, those."""
    return [
        {
            "template": record["ours"]["template"],
            "layers": record["layer"],
            **{name: record[name] for name in ("batch", "sparsity", "dtype")},
            "knobs": [record["ours"]["knobs"]],
        }
        for record in records
        if "ours" in record and not record["ours"]["default"]
    ]


def variants_of(
    case: Case,
    target: Any,
    candidates: Sequence[Candidate] = (),
    templates: Sequence[str] = ("*",),
    known: KnownKernels | None = None,
) -> list[Variant]:
    """The variants of a case, each once, the last resort last; `known` is what a tuning log has for the target.

    Raises
    ------
    InputError
        A candidate names a knob its template does not have.
    """
    from tvm_sparse.schedules import TEMPLATES
    from tvm_sparse.tvm_support.dependent_launch import pays_to_overlap

    workload = case.workload()
    found: list[Variant] = []
    logged = _logged(case, known) if known is not None else []
    for template in TEMPLATES:
        if not any(fnmatch(template.name, pattern) for pattern in templates):
            continue
        if template.applies(workload, target):
            continue
        default = dict(template.default(workload, 1 - case.sparsity, target))
        found.append(Variant(template.name, default, True))
        # As `compile` does, take no knobs of another version of the template.
        own = [v for v in logged if v.template == template.name and set(v.knobs) == set(default)]
        if match := next((v.logged for v in own if v.knobs == default), ""):
            found[-1] = replace(found[-1], logged=match)
        found += [v for v in own if v.knobs != default]
        for candidate in candidates:
            if candidate.template == template.name and candidate.matches(case):
                for knobs in candidate.knobs:
                    if unknown := set(knobs) - set(default):
                        raise InputError(f"template {template.name} has no knob {', '.join(sorted(unknown))}")
                    variant = Variant(template.name, {**default, **knobs}, False)
                    if all(variant.knobs != known.knobs or known.template != template.name for known in found):
                        found.append(variant)
    overlaps = pays_to_overlap(str(target.attrs.get("arch", "")), case.batch)
    return [replace(each, overlap=True) for each in found if overlaps and not each.last_resort] + found


def _logged(case: Case, known: KnownKernels) -> list[Variant]:
    """What `compile` takes from a log for the layer, each once."""
    found: list[Variant] = []
    for epilogue in EPILOGUES:
        match = known.find(replace(case.workload(), epilogue=epilogue), 1 - case.sparsity)
        if match is None or match.sparse is None:
            continue
        variant = Variant(match.sparse.template, dict(match.sparse.knobs), False, match.match)
        if all((variant.template, variant.knobs) != (other.template, other.knobs) for other in found):
            found.append(variant)
    return found
