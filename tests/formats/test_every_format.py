"""What holds for every format: the round trip, the counts, the stream and the refusals."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_sparse.errors import InputError, ModelError
from tvm_sparse.formats import ColumnVectorFilter, CSRFilter, FilterStream, SlicedELLFilter, SparseFilter

REPO = Path(__file__).resolve().parents[2]
PRUNED = Path(os.environ.get("TVM_SPARSE_DATA", REPO / "../shared/data/pruned"))

FORMATS: dict[str, Callable[[np.ndarray], SparseFilter]] = {
    "csr": CSRFilter.from_dense,
    "ell:1": lambda weight: SlicedELLFilter.from_dense(weight, 1),
    "ell:4": lambda weight: SlicedELLFilter.from_dense(weight, 4),
    "ell:1000": lambda weight: SlicedELLFilter.from_dense(weight, 1000),
    "vector:1": lambda weight: ColumnVectorFilter.from_dense(weight, 1),
    "vector:4": lambda weight: ColumnVectorFilter.from_dense(weight, 4),
    "vector:7": lambda weight: ColumnVectorFilter.from_dense(weight, 7),
}


def masked(shape: tuple[int, ...], density: float, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    """Normal weights, every one kept with probability `density`."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * (rng.random(shape) < density)).astype(dtype)


def single(shape: tuple[int, ...], at: tuple[int, ...]) -> np.ndarray:
    weight = np.zeros(shape, np.float32)
    weight[at] = -2.5
    return weight


def with_empty_rows() -> np.ndarray:
    weight = masked((9, 4, 3, 3), 0.4)
    weight[[0, 3, 8]] = 0
    return weight


CORNER_CASES: dict[str, np.ndarray] = {
    "random": masked((10, 6, 3, 3), 0.2),
    "empty filter": np.zeros((5, 3, 3, 3), np.float32),
    "empty rows": with_empty_rows(),
    "first weight only": single((4, 5, 2, 3), (0, 0, 0, 0)),
    "last weight only": single((4, 5, 2, 3), (3, 4, 1, 2)),
    "full": np.arange(1, 49, dtype=np.float32).reshape(4, 3, 2, 2),
    "one output channel": masked((1, 7, 3, 3), 0.3),
    "one input channel": masked((7, 1, 3, 3), 0.3),
    "one weight": np.ones((1, 1, 1, 1), np.float32),
    "pointwise": masked((6, 11, 1, 1), 0.3),
    "1-D": masked((5, 4, 1, 7), 0.3),
    "float16": masked((5, 4, 3, 3), 0.3, dtype="float16"),
    "float64": masked((5, 4, 3, 3), 0.3, dtype="float64"),
    "int8": (10 * masked((5, 4, 3, 3), 0.3)).astype("int8"),
    "not contiguous": masked((3, 3, 4, 6), 0.4).transpose(3, 2, 0, 1),
}


@st.composite
def filters(draw: st.DrawFn) -> np.ndarray:
    """(K, C, R, S) float32 filters of any density from 0 to 1, some rows and some input channels emptied."""
    shape = draw(st.tuples(st.integers(1, 17), st.integers(1, 12), st.integers(1, 4), st.integers(1, 4)))
    weight = masked(shape, draw(st.sampled_from([0.0, 0.02, 0.1, 0.5, 0.9, 1.0])), draw(st.integers(0, 2**32 - 1)))
    weight[draw(st.lists(st.integers(0, shape[0] - 1), max_size=4))] = 0
    weight[:, draw(st.lists(st.integers(0, shape[1] - 1), max_size=4))] = 0
    return weight


def published_filters() -> dict[str, np.ndarray]:
    """The pruned filters others have published, by file and array name; empty where they are not at hand."""
    found = {}
    for path in sorted(PRUNED.glob("*.npz")):
        with np.load(path) as arrays:
            for name in arrays.files:
                weight = arrays[name]
                if weight.ndim == 2:
                    taps = 3 if name.startswith("bg") else 1
                    weight = weight.reshape(weight.shape[0], -1, taps, taps)
                if weight.ndim == 4:
                    found[f"{path.stem}/{name}"] = weight
    return found


every_format = pytest.mark.parametrize("pack", FORMATS.values(), ids=FORMATS)
every_corner_case = pytest.mark.parametrize("weight", CORNER_CASES.values(), ids=CORNER_CASES)


def check_format(fmt: SparseFilter, weight: np.ndarray) -> None:
    dense = fmt.to_dense()
    assert dense.dtype == weight.dtype
    np.testing.assert_array_equal(dense, weight, strict=True)
    nnz = np.count_nonzero(weight)
    assert fmt.nnz == nnz <= fmt.stored
    assert fmt.density == pytest.approx(nnz / weight.size) and fmt.sparsity == pytest.approx(1 - nnz / weight.size)
    assert fmt.values.dtype == weight.dtype and fmt.columns.dtype == np.int32
    lengths = np.count_nonzero(weight, axis=(1, 2, 3))
    stats = fmt.row_stats()
    assert (stats.min, stats.max) == (lengths.min(), lengths.max())
    assert (stats.median, stats.mean) == (np.median(lengths), lengths.mean())
    assert stats.empty == np.count_nonzero(lengths == 0)


def check_stream(stream: FilterStream, weight: np.ndarray, pad_to: int) -> None:
    """Every promise of FilterStream, row block by row block, by plain loops."""
    k, c, r, s = weight.shape
    chunks, blocks = -(-c // stream.channels_per_chunk), -(-k // stream.vector)
    total = stream.columns.size
    assert stream.shape == weight.shape
    assert stream.values.dtype == weight.dtype and stream.values.shape == (total, stream.vector)
    for array, shape in (
        (stream.columns, (total,)),
        (stream.starts, (chunks, blocks)),
        (stream.counts, (chunks, blocks)),
    ):
        assert array.dtype == np.int32 and array.shape == shape
    assert not (stream.counts % pad_to).any()
    assert total == max(1, stream.counts.sum())

    owned = np.zeros(total, int)
    rebuilt = np.zeros((blocks * stream.vector, c * r * s), np.float64)
    for chunk in range(chunks):
        first, end = (
            min(at, c) * r * s for at in (chunk * stream.channels_per_chunk, (chunk + 1) * stream.channels_per_chunk)
        )
        segment = slice(stream.starts[chunk].min(), (stream.starts[chunk] + stream.counts[chunk]).max())
        assert segment.stop - segment.start == stream.counts[chunk].sum(), "the rows of a chunk stand together"
        for block in range(blocks):
            at = slice(stream.starts[chunk, block], stream.starts[chunk, block] + stream.counts[chunk, block])
            owned[at] += 1
            columns, values = stream.columns[at], stream.values[at]
            assert ((columns >= first) & (columns < end)).all()
            true = values.any(axis=1)
            assert not (~true[:-1] & true[1:]).any(), "padding stands at the end"
            assert (np.diff(columns[true]) > 0).all()
            assert (columns[~true] == (columns[true][-1] if true.any() else first)).all()
            rows = slice(block * stream.vector, (block + 1) * stream.vector)
            rebuilt[rows, columns[true]] += values[true].T
    assert (owned == 1).all() or (total == 1 and not stream.counts.any() and not stream.values.any())
    np.testing.assert_array_equal(rebuilt[:k].reshape(weight.shape), weight)
    assert not rebuilt[k:].any()
    np.testing.assert_array_equal(stream.to_dense(), weight, strict=True)


@every_format
@every_corner_case
def test_round_trip(pack: Callable[[np.ndarray], SparseFilter], weight: np.ndarray) -> None:
    check_format(pack(weight), weight)


@every_format
@every_corner_case
@pytest.mark.parametrize(("channels_per_chunk", "pad_to"), [(1, 1), (2, 4), (3, 1), (10**6, 3)])
def test_stream(
    pack: Callable[[np.ndarray], SparseFilter], weight: np.ndarray, channels_per_chunk: int, pad_to: int
) -> None:
    check_stream(pack(weight).stream(channels_per_chunk, pad_to), weight, pad_to)


@settings(deadline=None)
@given(filters(), st.integers(1, 20), st.integers(1, 14), st.integers(1, 5))
def test_any_filter(weight: np.ndarray, size: int, channels_per_chunk: int, pad_to: int) -> None:
    for fmt in (
        CSRFilter.from_dense(weight),
        SlicedELLFilter.from_dense(weight, size),
        ColumnVectorFilter.from_dense(weight, size),
    ):
        check_format(fmt, weight)
        check_stream(fmt.stream(channels_per_chunk, pad_to), weight, pad_to)


def test_bfloat16_keeps_its_dtype() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    weight = masked((6, 4, 3, 3), 0.3).astype(ml_dtypes.bfloat16)
    for pack in FORMATS.values():
        check_format(pack(weight), weight)
        np.testing.assert_array_equal(pack(weight).stream(2, 2).to_dense(), weight, strict=True)


def test_a_packed_filter_does_not_follow_the_dense_one() -> None:
    weight = masked((8, 4, 3, 3), 1.0)
    packed = {name: pack(weight) for name, pack in FORMATS.items()}
    before = weight.copy()
    weight[:] = 7
    for name, fmt in packed.items():
        np.testing.assert_array_equal(fmt.to_dense(), before, err_msg=name)


@every_format
def test_published_filters(pack: Callable[[np.ndarray], SparseFilter]) -> None:
    published = published_filters()
    if not published:
        pytest.skip("no published filters here; set TVM_SPARSE_DATA")
    for name, weight in published.items():
        fmt = pack(weight)
        np.testing.assert_array_equal(fmt.to_dense(), weight, err_msg=name, strict=True)
        for channels_per_chunk, pad_to in ((16, 1), (24, 2), (4096, 1)):
            stream = fmt.stream(channels_per_chunk, pad_to)
            np.testing.assert_array_equal(stream.to_dense(), weight, err_msg=name, strict=True)


@every_format
def test_a_large_filter_packs_at_once(pack: Callable[[np.ndarray], SparseFilter]) -> None:
    weight = masked((2048, 512, 3, 3), 0.1)
    start = time.process_time()
    stream = pack(weight).stream(16, 2)
    assert time.process_time() - start < 2, "about 0.1 s when vectorised; a loop over the nonzeros takes far longer"
    np.testing.assert_array_equal(stream.to_dense(), weight)


@every_format
@pytest.mark.parametrize(
    ("weight", "error", "says"),
    [
        (np.zeros((3, 3)), InputError, r"\(3, 3\)"),
        (np.zeros((3, 3, 5)), InputError, r"\(K, C/groups, 1, S\)"),
        (np.zeros((1, 2, 3, 3, 3)), InputError, r"four axes"),
        (np.zeros((4, 0, 3, 3)), InputError, r"\(4, 0, 3, 3\)"),
        (np.zeros((2, 2, 3, 3), complex), InputError, "complex128"),
        (np.array([["a"]])[None, None], InputError, "real numbers"),
        (np.ones((2, 2, 3, 3), bool), InputError, "bool"),
        (np.full((2, 2, 3, 3), np.nan, np.float32), ModelError, "36 of its weights are NaN or Inf"),
        (np.array([1, np.inf, -np.inf, 0], np.float16).reshape(1, 4, 1, 1), ModelError, "2 of its weights"),
    ],
)
def test_refused_filters(
    pack: Callable[[np.ndarray], SparseFilter], weight: np.ndarray, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        pack(weight)


@pytest.mark.parametrize("bad", [0, -1, 2.0, "4", None, True, 2**31, 10**30])
def test_refused_arguments(bad: object) -> None:
    weight = masked((4, 4, 3, 3), 0.5)
    csr = CSRFilter.from_dense(weight)
    for name, call in (
        ("slice_height", lambda: SlicedELLFilter.from_dense(weight, bad)),
        ("vector", lambda: ColumnVectorFilter.from_dense(weight, bad)),
        ("channels_per_chunk", lambda: csr.stream(bad)),
        ("pad_to", lambda: csr.stream(2, bad)),
    ):
        with pytest.raises(InputError, match=name):
            call()


def test_padding_beyond_int32_is_refused() -> None:
    weight = masked((64, 4, 3, 3), 0.5)
    with pytest.raises(InputError, match="pad less"):
        CSRFilter.from_dense(weight).stream(2, pad_to=2**30)
    with pytest.raises(InputError, match="pad less"):
        ColumnVectorFilter.from_dense(weight, 2**30)
