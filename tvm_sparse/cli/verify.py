"""`tvm-sparse verify`: does a compiled library compute what its model says?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tvm_sparse.cli.options import JsonFlag, Library, Model
from tvm_sparse.errors import VerificationError


def command(
    model: Model,
    library: Library,
    tolerance: Annotated[float, typer.Option(min=0.0, help="Largest relative error that passes.")] = 1e-4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random input.")] = 0,
    json: JsonFlag = False,
) -> None:
    """Run model and library on the same random input; exit 6 if they differ by more than the tolerance."""
    import tvm_sparse
    from tvm_sparse.cli.output import show_pairs, to_json

    verification = tvm_sparse.verify(model, library, tolerance=tolerance, seed=seed)
    verdict = summarize(verification)
    if json:
        print(to_json(verdict))
    else:
        if verification.batches:
            verdict["batches"] = ", ".join(map(str, verification.batches))
        show_pairs({name.replace("_", " "): value for name, value in verdict.items()})
    if not verification.passed:
        raise VerificationError(f"{library}: {verification.describe()}; compile it again from {model}")


def summarize(verification: Any) -> dict[str, Any]:
    """What a comparison found, as it is printed."""
    names = ["reference", "relative_error", "constant", "tolerance", "passed"]
    names += ["batches"] if verification.batches else []
    return {name: getattr(verification, name) for name in names}
