"""Compare a compiled network with the framework its model came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_sparse.deploy.metadata import BatchSizes
from tvm_sparse.deploy.tensors import random_inputs
from tvm_sparse.errors import ModelError, VerificationError
from tvm_sparse.oracle import relative_error

#: Roundings to 16 bits (each half a step of the dtype) that a whole network may add up.
HALF_PRECISION_STEPS = 16
_STEPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7}


@dataclass(frozen=True)
class Verification:
    """Relative error (L2 norm of the difference over that of the reference) of every output, by its name.

    `constant` names the outputs that have the same value everywhere in the reference: their comparison says little.
    `batches` are the batch sizes compared, where a library serves several; then the errors are the largest of them.
    """

    reference: str
    relative_error: dict[str, float]
    tolerance: float
    constant: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()

    @property
    def passed(self) -> bool:
        return all(error <= self.tolerance for error in self.relative_error.values())

    def describe(self) -> str:
        """One line: the reference, the output that differs most, and what the input did not exercise."""
        name, error = max(self.relative_error.items(), key=lambda item: item[1])
        note = f"; the same everywhere for this input: {', '.join(self.constant)}" if self.constant else ""
        batches = f"; batches {', '.join(map(str, self.batches))}" if self.batches else ""
        return (
            f"output {name} has a relative error of {error:.3g} against {self.reference} "
            f"(tolerance {self.tolerance:g}{batches}){note}"
        )


def compare_batches(
    models: Sequence[Any],
    network: Callable[..., Any],
    sizes: BatchSizes,
    *,
    tolerance: float,
    precision: str = "float32",
    seed: int = 0,
) -> Verification:
    """Compare at every batch size compiled for, and at one that is padded; see `compare`.

    Parameters
    ----------
    models : the ImportedModel of each bucket

    Raises
    ------
    ModelError, VerificationError
        As for `compare`.
    """
    found = [compare(model, network, tolerance=tolerance, precision=precision, seed=seed) for model in models]
    between = [n for n in range(1, sizes.largest) if n not in sizes.buckets][-1:]
    for n in between:
        only = (n, sizes.inputs)
        found.append(compare(models[-1], network, tolerance=tolerance, precision=precision, seed=seed, only=only))
    worst = {name: max(one.relative_error[name] for one in found) for name in found[0].relative_error}
    constant = tuple(name for name in worst if all(name in one.constant for one in found))
    return replace(found[0], relative_error=worst, constant=constant, batches=(*sizes.buckets, *between))


def compare(
    imported: Any,
    network: Callable[..., Any],
    *,
    tolerance: float,
    precision: str = "float32",
    seed: int = 0,
    only: tuple[int, Sequence[str]] | None = None,
) -> Verification:
    """Run an ImportedModel's reference and `network`, which takes the inputs by position, on one random input.

    A network of 16 bits, or with such inputs or outputs, is allowed their rounding, whatever `tolerance` says: 1.6e-2
    of float16, 0.125 of bfloat16.

    Parameters
    ----------
    precision : what the network stores its activations in
    only : give the network only so many images of the inputs named, and compare with what the reference makes of them
        among the others

    Raises
    ------
    ModelError
        When the original framework is not installed or cannot run the model.
    VerificationError
        When the two have outputs of different number or shape.
    """
    if imported.reference is None:
        raise ModelError(f"{imported.name}: nothing to compare with, its framework is not installed")
    reference = type(imported.reference).__name__.removesuffix("Reference").lower()
    inputs = random_inputs(imported.inputs, seed)
    try:
        expected = imported.reference(inputs)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{imported.name}: {reference} cannot run this model to verify it; compile it with --no-verify: {reason}"
        ) from error
    if only is not None:
        inputs = {name: array[: only[0]] if name in only[1] else array for name, array in inputs.items()}
        expected = [array[: only[0]] for array in expected]
    actual = network(*inputs.values())
    actual = actual if isinstance(actual, tuple) else (actual,)
    ours, theirs = ([np.shape(array) for array in arrays] for arrays in (actual, expected))
    if ours != theirs:
        raise VerificationError(f"{imported.name}: outputs of shapes {ours}, but {theirs} in {reference}")
    names = [spec.name for spec in imported.outputs]
    pairs = dict(zip(names, zip(actual, expected, strict=True), strict=True))
    dtypes = {precision, *(spec.dtype for spec in (*imported.inputs, *imported.outputs))}
    return Verification(
        reference=reference,
        relative_error={name: _error(*map(_float64, pair)) for name, pair in pairs.items()},
        tolerance=max(tolerance, *(HALF_PRECISION_STEPS * _STEPS.get(dtype, 0.0) for dtype in dtypes)),
        constant=tuple(name for name, (_, theirs) in pairs.items() if _constant(_float64(theirs))),
    )


def _float64(array: Any) -> NDArray[np.float64]:
    return np.asarray(array).astype(np.float64)


def _error(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    """The relative error over what is finite in the reference; elsewhere both must be the same NaN or infinity."""
    finite = np.isfinite(theirs)
    if not np.array_equal(ours[~finite], theirs[~finite], equal_nan=True):
        return float("inf")
    return relative_error(ours[finite], theirs[finite])


def _constant(array: NDArray[np.float64]) -> bool:
    return array.size > 1 and bool(np.all(array == array.flat[0]) or not np.isfinite(array).any())
