"""`tvm-sparse verify`: does a compiled library compute what its model says?"""

from __future__ import annotations

import math
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
    if json:
        print(to_json(verification))
    else:
        show_pairs(
            {
                "reference": verification.reference,
                "relative error": errors_by_output(verification),
                "tolerance": tolerance,
                "passed": bool(verification.passed),
            }
        )
    if not verification.passed:
        raise VerificationError(
            f"{library}: differs from {model} by a relative error of {worst_error(verification):.3g}, more than "
            f"{tolerance:g}; compile it again, or raise --tolerance"
        )


def errors_by_output(verification: Any) -> dict[str, float]:
    """Relative error of every output by its name."""
    return {str(name): float(error) for name, error in verification.relative_error.items()}


def worst_error(verification: Any) -> float:
    """The largest relative error of any output; NaN where one is NaN."""
    errors = errors_by_output(verification).values()
    return math.nan if any(map(math.isnan, errors)) else max(errors, default=0.0)
