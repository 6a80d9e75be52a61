"""Where measurements are kept: JSON with the environment they belong to."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def record(path: Path, results: list[dict[str, Any]], **conditions: Any) -> None:
    """Write results, the conditions they share and the environment, in place of an older record."""
    from tvm_sparse.files import replacing

    path.parent.mkdir(parents=True, exist_ok=True)
    report = {"environment": environment(), **conditions, "results": results}
    with replacing(path) as beside:
        beside.write_text(json.dumps(report, indent=1) + "\n")


def environment() -> dict[str, Any]:
    """The machine, the versions and the commit the figures belong to."""
    from tvm_sparse.deploy.environment import collect_env

    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    )
    return {"commit": commit.stdout.strip() or None, **collect_env()}
