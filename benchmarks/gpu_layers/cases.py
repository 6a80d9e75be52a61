"""What is measured: a layer at a batch with a mask and a dtype; the presets and their filters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

from benchmarks.gpu_layers.layers import REFERENCE, Layer, layers
from benchmarks.gpu_layers.weights import RealWeight
from tvm_sparse.errors import InputError
from tvm_sparse.workload import ConvWorkload

DTYPES = ("float32", "float16", "bfloat16")
#: Where the zeros stand: drawn, as published, or drawn with the number of nonzeros of a published filter.
MASKS = ("random", "real", "like")


@dataclass(frozen=True)
class Case:
    """One measurement. `source` is the published filter of the masks "real" and "like", as "file/array"."""

    layer: str
    batch: int
    sparsity: float
    dtype: str = "float32"
    mask: str = "random"
    source: str = ""

    @property
    def key(self) -> str:
        """Names the case in a record."""
        return f"{self.layer} n{self.batch} {self.filter_key} {self.dtype}"

    @property
    def filter_key(self) -> str:
        """Names the filter."""
        return f"{self.mask} {self.source}" if self.source else f"random {self.sparsity:g}"

    @property
    def shape(self) -> Layer:
        return layers()[self.layer]

    def workload(self) -> ConvWorkload:
        """The convolution as a compiled network would hold it: pixels of a pointwise one as one row."""
        return self.shape.workload(self.batch, self.dtype).flattened()


@dataclass(frozen=True)
class Preset:
    """A set of cases; `layers` empty for all of them."""

    layers: tuple[str, ...]
    batches: tuple[int, ...]
    sparsities: tuple[float, ...]


PRESETS = {
    "quick": Preset(REFERENCE, (1, 32), (0.9,)),
    "reference": Preset(REFERENCE, (1, 8, 32, 128), (0.8, 0.9, 0.95)),
    "crossover": Preset(REFERENCE, (1, 32), (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)),
    "all": Preset((), (1, 8, 32, 128), (0.8, 0.9, 0.95)),
    "real": Preset((), (1, 32), ()),
}


def select_cases(
    preset: str,
    *,
    layers_like: Sequence[str] = (),
    batches: Iterable[int] = (),
    sparsities: Iterable[float] = (),
    dtype: str = "float32",
    real: Sequence[RealWeight] = (),
) -> list[Case]:
    """The cases of a preset in which a name matches one of `layers_like` and batch and sparsity are among those given.

    The preset "real" has two cases for each of the weights `real` and each batch: the weights and their like. A batch
    or sparsity that the preset lacks is measured all the same.

    Raises
    ------
    InputError
        Nothing is left; the message says what there is.
    """
    chosen = PRESETS[preset]
    names = [name for name in chosen.layers or layers() if not layers_like or _matches(name, layers_like)]
    wanted_batches = tuple(batches) or chosen.batches
    if preset == "real":
        cases = [
            Case(weight.layer, batch, weight.sparsity, dtype, mask, weight.source)
            for weight in real
            for batch in wanted_batches
            for mask in ("real", "like")
            if weight.layer in names
        ]
    else:
        cases = [
            Case(name, batch, sparsity, dtype)
            for name in names
            for batch in wanted_batches
            for sparsity in tuple(sparsities) or chosen.sparsities
        ]
    if not cases:
        hint = "give --weights a folder with published filters" if preset == "real" and not real else "see `layers`"
        raise InputError(f"no case of the preset {preset} is left, of layers like {', '.join(layers_like)}: {hint}")
    return cases


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
