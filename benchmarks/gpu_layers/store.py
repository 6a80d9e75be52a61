"""The file of measurements: written anew after every case, and merged by case.

{"runs": [environment and conditions of each call of the driver],
 "cases": [one record a line, each with the index of its run],
 "dense": [times of the dense peers by layer and batch: they do not depend on the mask],
 "lethal": [keys of kernels that took the device down]}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tvm_sparse.errors import InputError
from tvm_sparse.files import replacing

Record = dict[str, Any]
_PARTS = ("runs", "cases", "dense", "lethal")


class Store:
    """Measurements in a file that need not exist yet; `begin_run` comes before the first record.

    Raises
    ------
    InputError
        The file is not one of these.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            text = path.read_text() if path.exists() else "{}"
            self._parts: dict[str, list[Any]] = {part: json.loads(text).get(part, []) for part in _PARTS}
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"{path}: not a file of GPU measurements: {error}") from error

    @property
    def runs(self) -> list[Record]:
        return self._parts["runs"]

    @property
    def cases(self) -> list[Record]:
        return self._parts["cases"]

    def case(self, key: str) -> Record | None:
        """The record of a case, by its key."""
        return next((record for record in self.cases if record["case"] == key), None)

    def dense(self, layer: str, batch: int, run: int | None = None) -> Record:
        """The dense peers of a layer by name, of one run or of the last that has them."""
        rows = [row for row in self._parts["dense"] if (row["layer"], row["batch"]) == (layer, batch)]
        if run is not None:
            rows = [row for row in rows if row["run"] == run]
        return {name: timing for row in rows for name, timing in row["peers"].items()}

    def lethal(self, key: str) -> bool:
        """Whether a kernel took the device down before."""
        return key in self._parts["lethal"]

    def begin_run(self, conditions: Record) -> int:
        """Note what the next records have in common; the index of the run, which is an earlier one if that is equal."""
        if conditions not in self.runs:
            self.runs.append(conditions)
        return self.runs.index(conditions)

    def add(self, key: str, record: Record, dense: Record, run: int) -> None:
        """Put a case in place of an older record of it, and the dense peers beside it, and write the file."""
        self._put("cases", {"case": key, "run": run, **record}, "case")
        if dense:
            row = {"layer": record["layer"], "batch": record["batch"], "run": run}
            known = self.dense(record["layer"], record["batch"], run)
            self._put("dense", {**row, "peers": {**known, **dense}}, *row)
        self.write()

    def add_lethal(self, key: str) -> None:
        self._parts["lethal"].append(key)
        self.write()

    def write(self) -> None:
        """Every record on a line of its own, so that a change shows as a change of lines."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        parts = (
            f"{json.dumps(part)}: [\n" + ",\n".join(map(json.dumps, rows)) + "\n]" for part, rows in self._parts.items()
        )
        with replacing(self._path) as beside:
            beside.write_text("{" + ",\n".join(parts) + "}\n")

    def _put(self, part: str, row: Record, *names: str) -> None:
        rows = self._parts[part]
        for index, old in enumerate(rows):
            if all(old[name] == row[name] for name in names):
                rows[index] = row
                return
        rows.append(row)
