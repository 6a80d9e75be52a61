"""What a comparison with the original framework finds, and what it says of an input that shows nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from tvm_sparse.deploy import TensorSpec
from tvm_sparse.errors import ModelError, VerificationError
from tvm_sparse.verification import Verification, compare


class FrameworkReference:
    """Answers with fixed outputs, or raises."""

    def __init__(self, *outputs: Any, error: Exception | None = None) -> None:
        self.outputs, self.error = [np.asarray(output) for output in outputs], error
        self.seen: Mapping[str, np.ndarray] = {}

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        self.seen = inputs
        if self.error is not None:
            raise self.error
        return self.outputs


@dataclass
class Imported:
    """What compare() reads of an ImportedModel; every output is float32 unless `dtype` says otherwise."""

    reference: FrameworkReference | None
    dtype: str = "float32"
    name: str = "net"
    inputs: tuple[TensorSpec, ...] = (TensorSpec("x", (2, 3), "float32"), TensorSpec("i", (4,), "int64"))
    outputs: tuple[TensorSpec, ...] = field(init=False)

    def __post_init__(self) -> None:
        given = self.reference.outputs if self.reference else []
        self.outputs = tuple(TensorSpec(f"y{i}", array.shape, self.dtype) for i, array in enumerate(given))


def compared(theirs: Any, ours: Any, dtype: str = "float32", tolerance: float = 1e-4) -> Verification:
    network = FrameworkReference(ours)
    return compare(Imported(FrameworkReference(theirs), dtype), lambda *_: network.outputs[0], tolerance=tolerance)


def test_the_network_gets_the_inputs_of_the_reference_by_position() -> None:
    reference, seen = FrameworkReference([1.0, 2.0], [3.0]), []

    def network(*inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        seen.extend(inputs)
        return np.array([1.0, 2.0]), np.array([3.3])

    verification = compare(Imported(reference), network, tolerance=1e-4)
    assert list(reference.seen) == ["x", "i"]
    assert all(ours is theirs for ours, theirs in zip(seen, reference.seen.values(), strict=True))
    assert [(array.shape, str(array.dtype)) for array in seen] == [((2, 3), "float32"), ((4,), "int64")]
    assert verification.reference == "framework"
    assert verification.relative_error == {"y0": 0.0, "y1": pytest.approx(0.1)}
    assert not verification.passed
    assert verification.describe() == "output y1 has a relative error of 0.1 against framework (tolerance 0.0001)"


@pytest.mark.parametrize(
    ("theirs", "ours", "passed"),
    [
        ([1.0, 2.0], [1.0, 2.0], True),
        ([1.0, 2.0], [1.0, 2.0001], True),
        ([1.0, 2.0], [1.0, 2.01], False),
        ([1.0, 2.0], [1.0, np.nan], False),
        ([1.0, 2.0], [1.0, np.inf], False),
        ([1.0, np.nan], [1.0, np.nan], True),
        ([1.0, np.nan], [1.0, 2.0], False),
        ([1.0, np.nan], [1.5, np.nan], False),
        ([1.0, -np.inf], [1.0, -np.inf], True),
        ([1.0, -np.inf], [1.0, np.inf], False),
        ([0.0, 0.0], [0.0, 1e-3], False),
        ([True, False], [True, True], False),
        ([3, 4], [3, 4], True),
    ],
)
def test_what_passes(theirs: list[float], ours: list[float], passed: bool) -> None:
    verification = compared(theirs, ours)
    assert verification.passed is passed
    assert "\n" not in verification.describe()


@pytest.mark.parametrize(
    ("values", "constant"),
    [([0.0, 0.0], True), ([2.5, 2.5, 2.5], True), ([np.nan, np.nan], True), ([1.0, 2.0], False), ([1.0], False)],
)
def test_an_output_that_is_the_same_everywhere_is_named(values: list[float], constant: bool) -> None:
    verification = compared(values, values)
    assert verification.passed
    assert verification.constant == (("y0",) if constant else ())
    assert verification.describe().endswith("the same everywhere for this input: y0") is constant


@pytest.mark.parametrize(
    ("dtype", "tolerance", "limit"),
    [("float32", 1e-4, 1e-4), ("float16", 1e-4, 2.0**-6), ("bfloat16", 1e-4, 2.0**-3), ("float16", 0.5, 0.5)],
)
def test_sixteen_bits_may_be_rounded(dtype: str, tolerance: float, limit: float) -> None:
    assert compared([1.0], [1.0], dtype, tolerance).tolerance == limit


def test_outputs_of_another_shape_are_a_mismatch() -> None:
    with pytest.raises(VerificationError, match=r"net: outputs of shapes \[\(3,\)\], but \[\(2,\)\] in framework"):
        compared([1.0, 2.0], [1.0, 2.0, 3.0])


def test_without_a_reference_there_is_nothing_to_compare() -> None:
    with pytest.raises(ModelError, match="net: nothing to compare with"):
        compare(Imported(None), lambda *_: np.zeros(1), tolerance=1e-4)


def test_a_reference_that_cannot_run_the_model_says_so_in_one_line() -> None:
    reference = FrameworkReference(error=RuntimeError("no kernel\n for Conv of double"))
    with pytest.raises(ModelError) as caught:
        compare(Imported(reference), lambda *_: np.zeros(1), tolerance=1e-4)
    assert str(caught.value) == (
        "net: framework cannot run this model to verify it; compile it with --no-verify: no kernel for Conv of double"
    )
