"""Holds the sources to the room table of docs/architecture.md, which is read here and stands nowhere else."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "architecture.md"
PACKAGE = "tvm_sparse"
HEAVY = {"tvm", "tvm_ffi", "torch", "onnx", "onnxruntime", "onnxslim", "onnxscript", "numpy", "rich", "xgboost"}
LIGHT = {f"{PACKAGE}.errors", f"{PACKAGE}.files"}  # these rooms a lazy one may import at its top level


@dataclass(frozen=True)
class Room:
    """One row of the table; `module` is its dotted name, `may_import` holds the modules of other rooms."""

    module: str
    may_import: frozenset[str]
    lazy: bool
    pure_numpy: bool


@dataclass(frozen=True)
class Import:
    """`target` imported on `line`, by a statement that runs when the file is imported if `at_top`."""

    target: str
    line: int
    at_top: bool
    for_types_only: bool


def read_rooms(text: str) -> list[Room]:
    """Rooms of the table under the heading 'The rooms', in its order."""
    rooms: list[Room] = []
    for row in re.findall(r"^\| `.*\|$", text.split("## The rooms")[1], flags=re.MULTILINE):
        place, purpose, rule = (cell.strip() for cell in row.strip("|").split("|"))
        (module,) = {
            name.removesuffix(".py").rstrip("/").replace("/", ".")
            for name in re.findall(r"`([^`]+)`", place)
            if name.startswith(PACKAGE)
        }
        above = {room.module.removeprefix(f"{PACKAGE}."): room.module for room in rooms}
        names, _, remark = re.sub(r"\([^)]*\)", "", rule).strip().partition(";")
        if names.strip() == "everything above":
            allowed = frozenset(above.values())
        else:
            wanted = [name.strip() for name in names.split(",") if name.strip() not in {"–", ""}]
            assert set(wanted) <= set(above), f"{module}: {sorted(set(wanted) - set(above))} is no room above it"
            allowed = frozenset(above[name] for name in wanted)
        rooms.append(Room(module, allowed, "lazily" in remark, "pure numpy" in purpose))
    return rooms


def imports_of(source: str, module: str, *, is_package: bool) -> Iterator[Import]:
    """Every absolute dotted name that `source` imports, relative imports resolved against `module`."""

    def visit(node: ast.AST, at_top: bool, for_types: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, at_top, for_types) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if is_package else module.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            yield from (Import(f"{base}.{alias.name}", node.lineno, at_top, for_types) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from visit(child, at_top, True)
            for child in node.orelse:
                yield from visit(child, at_top, for_types)
        else:
            inner = at_top and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from visit(child, inner, for_types)

    yield from visit(ast.parse(source), True, False)


def room_of(module: str, rooms: list[Room]) -> Room | None:
    return next((room for room in rooms if module == room.module or module.startswith(f"{room.module}.")), None)


def violations(source: str, module: str, rooms: list[Room], *, is_package: bool = False) -> list[str]:
    """One line per import in `source` (the text of `module`) that the table forbids."""
    here = room_of(module, rooms)
    if here is None and module != PACKAGE:
        return [f"{module}: stands in no room of {DOCUMENT.name}"]
    found = []
    for item in imports_of(source, module, is_package=is_package):
        where, outside = f"{module}:{item.line}", item.target.split(".")[0]
        runs_at_import = item.at_top and not item.for_types_only
        if outside != PACKAGE:
            if runs_at_import and outside in HEAVY and (here is None or here.lazy or here.module in LIGHT):
                found.append(f"{where}: imports {outside} at its top level; it must stay quick to import")
            if here and here.pure_numpy and outside not in {*sys.stdlib_module_names, "numpy"}:
                found.append(f"{where}: imports {outside}, but {here.module} is pure numpy")
            continue
        # A name of tvm_sparse itself that is no room is one of the public calls, which api and deploy provide.
        there = room_of(item.target, rooms) or room_of(f"{PACKAGE}.api", rooms)
        assert there is not None, f"{DOCUMENT.name} has no room for the api"
        if there is here or (here is None and not runs_at_import):
            continue
        if here is None or there.module not in here.may_import:
            found.append(f"{where}: {here.module if here else PACKAGE} may not import {item.target}")
        elif here.lazy and runs_at_import and there.module not in LIGHT:
            found.append(f"{where}: must import {item.target} inside a function")
    return found


ROOMS = read_rooms(DOCUMENT.read_text(encoding="utf-8"))


def source_files() -> list[tuple[str, Path]]:
    """(dotted module, path) of every file of the package; the linked folders are followed."""
    files = []
    for folder in [PACKAGE, f"{PACKAGE}/schedules", f"{PACKAGE}/tuning_logs"]:
        base = ROOT / folder
        for path in sorted(base.resolve().rglob("*.py")):
            parts = (*folder.split("/"), *path.relative_to(base.resolve()).with_suffix("").parts)
            files.append((".".join(parts).removesuffix(".__init__"), path))
    return files


@pytest.mark.parametrize(("module", "path"), source_files(), ids=lambda value: value if isinstance(value, str) else "")
def test_imports_point_downwards(module: str, path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert violations(source, module, ROOMS, is_package=path.name == "__init__.py") == []


def test_every_room_of_the_document_exists() -> None:
    places = [ROOT / room.module.replace(".", "/") for room in ROOMS]
    assert [str(place) for place in places if not (place.is_dir() or place.with_suffix(".py").is_file())] == []


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("tvm_sparse.formats.csr", "from tvm_sparse.compute import direct", "may not import"),
        ("tvm_sparse.formats.csr", "from ..network import build", "may not import"),
        ("tvm_sparse.formats.csr", "def f():\n    import tvm_sparse.api", "may not import"),
        ("tvm_sparse.formats.csr", "import tvm_sparse", "may not import"),
        ("tvm_sparse.formats.csr", "from tvm_sparse import compile", "may not import"),
        ("tvm_sparse.formats.csr", "if TYPE_CHECKING:\n    from tvm_sparse.api import compile", "may not import"),
        ("tvm_sparse.formats.csr", "import tvm", "pure numpy"),
        ("tvm_sparse.errors", "from . import workload", "may not import"),
        ("tvm_sparse.tuning_logs", "from tvm_sparse import errors", "may not import"),
        ("tvm_sparse.deploy.loader", "from tvm_sparse.network import build", "may not import"),
        ("tvm_sparse.cli.app", "from tvm_sparse.api import compile", "inside a function"),
        ("tvm_sparse.cli.app", "import rich.table", "quick to import"),
        ("tvm_sparse.cli.app", "try:\n    import tvm\nexcept ImportError:\n    pass", "quick to import"),
        ("tvm_sparse.files", "import numpy", "quick to import"),
        ("tvm_sparse", "from tvm_sparse.errors import InputError", "may not import"),
        ("tvm_sparse", "import numpy as np", "quick to import"),
        ("tvm_sparse.attic", "", "no room"),
    ],
)
def test_a_planted_violation_is_found(module: str, source: str, complaint: str) -> None:
    found = violations(source, module, ROOMS)
    assert len(found) == 1 and complaint in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("tvm_sparse.compute.direct", "import tvm\nfrom tvm_sparse.formats import csr\nfrom . import epilogue"),
        ("tvm_sparse.api", "from tvm_sparse.network import build\nfrom tvm_sparse.deploy import load"),
        ("tvm_sparse.cli.app", "import typer\nfrom tvm_sparse import errors, files"),
        ("tvm_sparse.cli.app", "def f():\n    import rich.table\n    from tvm_sparse.api import compile"),
        ("tvm_sparse", "if TYPE_CHECKING:\n    from tvm_sparse.api import compile"),
    ],
)
def test_what_the_table_allows_passes(module: str, source: str) -> None:
    assert violations(source, module, ROOMS) == []


def test_a_table_that_points_upwards_is_refused() -> None:
    rows = "## The rooms\n| `tvm_sparse/a.py` | x | b |\n| `tvm_sparse/b.py` | x | – |\n"
    with pytest.raises(AssertionError, match="no room above it"):
        read_rooms(rows)
