"""Compare a compiled network with the framework its model came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_sparse.deploy.tensors import random_inputs
from tvm_sparse.errors import ModelError
from tvm_sparse.oracle import relative_error


@dataclass(frozen=True)
class Verification:
    """Relative error (L2 norm of the difference over that of the reference) of every output, by its name."""

    reference: str
    relative_error: dict[str, float]
    tolerance: float

    @property
    def passed(self) -> bool:
        return all(error <= self.tolerance for error in self.relative_error.values())

    def describe(self) -> str:
        """One line: the reference and the output that differs most."""
        name, error = max(self.relative_error.items(), key=lambda item: np.nan_to_num(item[1], nan=np.inf))
        return (
            f"output {name} has a relative error of {error:.3g} against {self.reference} (tolerance {self.tolerance:g})"
        )


def compare(imported: Any, network: Callable[..., Any], *, tolerance: float, seed: int = 0) -> Verification:
    """Run an ImportedModel's reference and `network`, which takes the inputs by position, on one random input.

    Raises
    ------
    ModelError
        When the original framework is not installed.
    """
    if imported.reference is None:
        raise ModelError(f"{imported.name}: nothing to compare with, its framework is not installed")
    inputs = random_inputs(imported.inputs, seed)
    expected = imported.reference(inputs)
    actual = network(*inputs.values())
    actual = actual if isinstance(actual, tuple) else (actual,)
    errors = {
        spec.name: relative_error(np.asarray(ours, np.float64), np.asarray(theirs, np.float64))
        for spec, ours, theirs in zip(imported.outputs, actual, expected, strict=True)
    }
    return Verification(type(imported.reference).__name__.removesuffix("Reference").lower(), errors, tolerance)
