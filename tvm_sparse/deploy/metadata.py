"""What a library says about itself. Standard library only: the loader reads this before anything else."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tvm_sparse.errors import LibraryError

FORMAT_VERSION = 2


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of the network: its name, static shape, and dtype as numpy names it."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class BatchSizes:
    """How a library serves every batch from 1 to its largest bucket: a function for each bucket, inputs padded to it.

    Attributes
    ----------
    buckets
        The batch sizes compiled for, ascending.
    inputs
        Names of the inputs whose leading dimension is the batch. It is that of every output.
    """

    buckets: tuple[int, ...]
    inputs: tuple[str, ...]

    @property
    def largest(self) -> int:
        """The largest batch served; `Metadata.inputs` and `.outputs` have its shapes."""
        return self.buckets[-1]

    def bucket(self, n: int) -> int:
        """The smallest bucket that n images, from 1 to the largest batch, fit into."""
        return next(bucket for bucket in self.buckets if bucket >= n)

    def function(self, bucket: int) -> str:
        """The name of a bucket's function in the library."""
        return "main" if bucket == self.largest else f"main_{bucket}"


@dataclass(frozen=True)
class Metadata:
    """Everything a loader, a report or a bug report needs to know of a library.

    Attributes
    ----------
    model
        Name of the model it was compiled from.
    target
        "llvm" or "cuda".
    triple, mcpu
        The CPU the (host) code is for, as LLVM names it.
    cpu_features
        What that code needs, as /proc/cpuinfo names it.
    archs
        CUDA: the archs it holds machine code for, like "sm_90".
    cuda_graph
        CUDA: whether the kernels are captured in a CUDA graph.
    precision
        What activations and filters are stored in between the layers of a float32 model.
    versions
        Of the packages that compiled it.
    batch
        The batch sizes it serves; None where there is only the one of `inputs`.
    layers
        One free-form mapping per convolution, of every batch size: how it runs and why.
    dense_bytes, sparse_bytes
        Size of the convolution filters with their zeros, and as packed.
    created
        ISO 8601, UTC.
    """

    model: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    target: str
    triple: str = ""
    mcpu: str = ""
    cpu_features: tuple[str, ...] = ()
    archs: tuple[str, ...] = ()
    cuda_graph: bool = False
    precision: str = "float32"
    versions: dict[str, str] = field(default_factory=dict)
    batch: BatchSizes | None = None
    layers: tuple[dict[str, Any], ...] = ()
    dense_bytes: int = 0
    sparse_bytes: int = 0
    created: str = ""
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """As one JSON object; numpy scalars and arrays inside `layers` become numbers and lists."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, default=_plain)

    @classmethod
    def from_json(cls, text: str | bytes) -> Metadata:
        """Read back what `to_json` wrote; unknown keys of a later release are ignored.

        Raises
        ------
        LibraryError
            It is not such an object; the message names the key.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise LibraryError(f"the metadata is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise LibraryError("the metadata is not a JSON object")
        version = values.get("format_version")
        if version != FORMAT_VERSION:
            raise LibraryError(
                f"the metadata has format {version}, this release reads {FORMAT_VERSION}: compile it again"
            )
        checked = {}
        for name, reader in _READERS.items():
            try:
                checked[name] = reader(values[name])
            except (KeyError, TypeError) as error:
                raise LibraryError(f"the metadata has no valid {name!r}") from error
        if checked["target"] not in ("llvm", "cuda"):
            raise LibraryError(f"the metadata names an unknown target {checked['target']!r}")
        return cls(**checked)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be stored as JSON")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(_text(item) for item in _list(value))


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError
    return value


def _dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError
    return value


def _specs(value: Any) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(_text(item["name"]), tuple(_count(size) for size in _list(item["shape"])), _text(item["dtype"]))
        for item in map(_dict, _list(value))
    )


def _batch(value: Any) -> BatchSizes | None:
    if value is None:
        return None
    buckets = tuple(_count(size) for size in _list(_dict(value)["buckets"]))
    if not buckets or buckets[0] < 1 or any(low >= high for low, high in pairwise(buckets)):
        raise TypeError
    return BatchSizes(buckets, _texts(value["inputs"]))


_READERS: dict[str, Any] = {
    "model": _text,
    "inputs": _specs,
    "outputs": _specs,
    "target": _text,
    "triple": _text,
    "mcpu": _text,
    "cpu_features": _texts,
    "archs": _texts,
    "cuda_graph": _flag,
    "precision": _text,
    "versions": lambda value: {key: _text(item) for key, item in _dict(value).items()},
    "batch": _batch,
    "layers": lambda value: tuple(map(_dict, _list(value))),
    "dense_bytes": _count,
    "sparse_bytes": _count,
    "created": _text,
}
