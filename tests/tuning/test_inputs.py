"""What candidates run on: repeated images, and a reference that notices a wrong pixel of a checked image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.cases import reference
from tvm_sparse.tuning.inputs import checked_images, error_of, prepare, read_input, shapes_of
from tvm_sparse.workload import ConvWorkload, Epilogue


@pytest.mark.parametrize("n", [1, 2, 7])
def test_inputs_and_what_they_must_give(tmp_path: Path, n: int) -> None:
    epilogue = Epilogue(True, True, "clip", (-0.5, 1.5))
    workload = ConvWorkload(n, 4, 9, 7, 6, 3, 3, (2, 1), (1, 0, 1, 2), groups=2, epilogue=epilogue)
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(workload.filter_shape).astype(np.float32)
    np.save(tmp_path / "weight.npy", weight)
    prepare(str(tmp_path), workload, 0)
    inputs = {name: read_input(str(tmp_path), name, workload) for name in shapes_of(workload)}
    assert {name: array.shape for name, array in inputs.items()} == shapes_of(workload)
    y = reference(workload, weight, inputs).astype(np.float32)
    expected = np.load(tmp_path / "expected.npy")
    assert error_of(y, expected) < 1e-6
    wrong = y.copy()
    wrong[checked_images(n)[-1], 0, 0, 0] += 0.1
    assert error_of(wrong, expected) > 1e-4
    wrong[0, 0, 0, 0] = np.nan
    assert error_of(wrong, expected) == float("inf")
    if n == 7:
        unchecked = y.copy()
        unchecked[1, 0, 0, 0] = np.nan  # of the others at least every element must be written
        assert error_of(unchecked, expected) == float("inf")


def test_images_that_are_checked() -> None:
    assert [checked_images(n) for n in (1, 2, 3, 32)] == [[0], [0, 1], [0, 1, 2], [0, 16, 31]]
