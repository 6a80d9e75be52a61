from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_sparse.errors import InputError, ModelError
from tvm_sparse.prune import magnitude_mask
from tvm_sparse.prune.masks import joint_masks

REPO = Path(__file__).resolve().parents[2]
PRUNED = Path(os.environ.get("TVM_SPARSE_DATA", REPO / "../shared/data/pruned"))

sparsities = st.floats(0, 1, exclude_max=True)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_by_hand() -> None:
    weight = np.array([[3.0, -1.0], [-4.0, 2.0]]).reshape(2, 2, 1, 1)
    assert magnitude_mask(weight, 0.5).ravel().tolist() == [True, False, True, False]


def test_vectors_by_hand() -> None:
    # Norms of the two-row vectors: (5, 4.1) above (1.4, 3).
    weight = np.array([[3, 0.9], [4, 4], [1, 0], [1, 3]], float).reshape(4, 2, 1, 1)
    mask = magnitude_mask(weight, 0.5, "vector:2")
    assert mask.reshape(4, 2).tolist() == [[True, True], [True, True], [False, False], [False, False]]
    assert magnitude_mask(weight, 0.25, "vector:2").reshape(4, 2)[2:].tolist() == [[False, True], [False, True]]


def test_a_shorter_last_vector_is_compared_fairly() -> None:
    weight = np.ones((5, 2, 1, 1))
    weight[4, 0] = 1.1
    mask = magnitude_mask(weight, 5 / 6, "vector:2").reshape(5, 2)
    assert mask.tolist() == [[False, False]] * 4 + [[True, False]]


@settings(deadline=None)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3)),
    sparsities,
    st.integers(1, 11),
    st.sampled_from(["normal", "ties", "zeros"]),
    st.sampled_from(["float16", "float32", "float64"]),
)
def test_counts_are_exact_and_the_smallest_go(
    shape: tuple[int, ...], sparsity: float, vector: int, kind: str, dtype: str
) -> None:
    weight = normal(*shape).astype(dtype)
    if kind == "ties":
        weight = np.round(weight)
    elif kind == "zeros":
        weight[:] = 0
    k, columns = shape[0], weight.size // shape[0]

    mask = magnitude_mask(weight, sparsity)
    assert mask.dtype == bool and mask.shape == shape
    assert np.count_nonzero(~mask) == round(sparsity * weight.size)
    if mask.any() and not mask.all():
        assert np.abs(weight[mask]).min() >= np.abs(weight[~mask]).max()

    mask = magnitude_mask(weight, sparsity, f"vector:{vector}").reshape(k, columns)
    blocks = [slice(at, at + vector) for at in range(0, k, vector)]
    kept = np.array([mask[block].any(axis=0) for block in blocks])
    assert all((mask[block] == kept[i]).all() for i, block in enumerate(blocks)), "a vector stays or goes as a whole"
    assert np.count_nonzero(~kept) == round(sparsity * kept.size)
    matrix = weight.reshape(k, columns).astype(np.float64)
    rms = np.array([np.sqrt(np.mean(matrix[block] ** 2, axis=0)) for block in blocks])
    if kept.any() and not kept.all():
        assert rms[kept].min() >= rms[~kept].max() * (1 - 1e-12)


def test_vectors_of_one_are_unstructured() -> None:
    weight = normal(7, 5, 3, 3)
    np.testing.assert_array_equal(magnitude_mask(weight, 0.7, "vector:1"), magnitude_mask(weight, 0.7))


def test_ties_fall_to_the_first() -> None:
    mask = magnitude_mask(np.ones((2, 4, 1, 1)), 0.5)
    np.testing.assert_array_equal(mask.ravel(), [False] * 4 + [True] * 4)


def test_joint_masks_rank_all_filters_together() -> None:
    small, large = normal(4, 4, 3, 3), 100 * (1 + np.abs(normal(2, 4, 3, 3)))
    masks = joint_masks([small, large], 0.5, 1)
    assert np.count_nonzero(~masks[0]) == round(0.5 * (small.size + large.size))
    assert masks[1].all() and joint_masks([], 0.5, 1) == []


def test_published_filters_lose_their_zeros_first() -> None:
    """Filters others have pruned: at the sparsity they have, exactly their zeros go; above it, small weights too."""
    paths = sorted(PRUNED.glob("*.npz"))
    if not paths:
        pytest.skip("no published filters here; set TVM_SPARSE_DATA")
    seen = 0
    for path in paths:
        with np.load(path) as arrays:
            weights = {name: arrays[name] for name in arrays.files}
        for name, weight in weights.items():
            if weight.ndim >= 2:
                seen += 1
                sparsity = float((weight == 0).mean())
                np.testing.assert_array_equal(magnitude_mask(weight, sparsity), weight != 0, err_msg=name)
                mask = magnitude_mask(weight, (1 + sparsity) / 2, "vector:4")
                assert np.count_nonzero(weight[mask]) < np.count_nonzero(weight), name
    assert seen >= 10


@pytest.mark.parametrize("sparsity", [1.0, -0.1, 1.5, 90, float("nan"), float("inf"), "most", None])
def test_refused_sparsities(sparsity: Any) -> None:
    with pytest.raises(InputError, match="sparsity"):
        magnitude_mask(normal(2, 2, 3, 3), sparsity)


@pytest.mark.parametrize(
    "pattern", ["", "vector", "vector:", "vector:0", "vector:-2", "vector:2.5", "block:2", "²", None]
)
def test_refused_patterns(pattern: Any) -> None:
    with pytest.raises(InputError, match="pattern"):
        magnitude_mask(normal(2, 2, 3, 3), 0.5, pattern)


def test_refused_weights() -> None:
    with pytest.raises(ModelError, match="1 NaN or Inf"):
        magnitude_mask(np.array([[1.0, np.nan]]), 0.5)
    with pytest.raises(InputError, match="int64"):
        magnitude_mask(np.ones((2, 2), int), 0.5)
    with pytest.raises(InputError, match=r"\(3,\)"):
        magnitude_mask(np.ones(3), 0.5)
