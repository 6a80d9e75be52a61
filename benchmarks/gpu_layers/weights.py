"""Filters: random masks, and published pruned filters with the layers they belong to."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_layers.layers import layer_of
from tvm_sparse.errors import InputError

if TYPE_CHECKING:
    from benchmarks.gpu_layers.cases import Case

#: The files of published filters, and the node of an example network at which an array of theirs stands.
FILES: dict[str, Callable[[str], str | None]] = {
    "caffenet_a": lambda array: f"alexnet:{array}",
    "resnet50_3x3_90": lambda array: f"resnet50:layer{array.removeprefix('bg')}.1.conv2",
    "mobilenet_v1_90": lambda array: (
        f"mobilenetv1:Conv2d_{int(array[2:]) + 1}_pointwise" if array.startswith("pw") and array[2:].isdigit() else None
    ),
}


@dataclass(frozen=True)
class RealWeight:
    """A published filter: `source` is "file/array", `digest` of the file."""

    source: str
    layer: str
    sparsity: float
    digest: str


def real_weights(folder: Path) -> list[RealWeight]:
    """The published filters in a folder that belong to a layer of ours.

    Raises
    ------
    InputError
        The folder has none of the files, or an array does not fit its layer.
    """
    found = []
    for name, node_of in FILES.items():
        path = folder / f"{name}.npz"
        if not path.is_file():
            continue
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        with np.load(path) as arrays:
            for array in arrays.files:
                if node := node_of(array):
                    layer = layer_of(node)
                    size = int(np.prod(layer.workload(1).filter_shape))
                    if arrays[array].size != size:
                        raise InputError(f"{path}: {array} {arrays[array].shape} is not the filter of {layer.name}")
                    sparsity = float((arrays[array] == 0).mean())
                    found.append(RealWeight(f"{name}/{array}", layer.name, sparsity, digest))
    if not found:
        raise InputError(f"{folder}: no published filters here; expected {', '.join(f'{name}.npz' for name in FILES)}")
    return found


def weight_of(case: Case, seed: int, folder: Path | None) -> NDArray[Any]:
    """The filter of a case, (k, c/groups, r, s) float32, scaled so that outputs of standard normal inputs are O(1)."""
    shape = case.workload().filter_shape
    if case.mask == "random":
        nnz = round((1 - case.sparsity) * int(np.prod(shape)))
        return random_weight(shape, nnz, np.random.default_rng([seed, zlib.crc32(f"{case.layer} {nnz}".encode())]))
    if folder is None:
        raise InputError(f"{case.key}: give --weights the folder of {case.source}")
    file, array = case.source.split("/")
    with np.load(folder / f"{file}.npz") as arrays:
        weight = arrays[array].astype(np.float32).reshape(shape)
    nnz = int(np.count_nonzero(weight))
    if case.mask == "like":
        return random_weight(shape, nnz, np.random.default_rng([seed, zlib.crc32(case.source.encode())]))
    return weight / np.float32(np.sqrt(np.square(weight).sum() / shape[0]))


def random_weight(shape: tuple[int, int, int, int], nnz: int, rng: np.random.Generator) -> NDArray[Any]:
    """`nnz` normal weights at random places, so that rows differ in length."""
    size = int(np.prod(shape))
    weight = np.zeros(size, np.float32)
    kept = rng.permutation(size)[:nnz]
    weight[kept] = rng.standard_normal(nnz) / np.sqrt(max(nnz, 1) / shape[0])
    return weight.reshape(shape)
