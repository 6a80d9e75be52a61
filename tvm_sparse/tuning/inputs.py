"""What every candidate of a layer runs on, and what it must give: drawn and computed once, kept in a folder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_sparse import oracle
from tvm_sparse.workload import ConvWorkload

#: Different images of a batch; its others repeat them, for disks would not hold the inputs of many layers.
DIFFERENT_IMAGES = 3


def prepare(folder: str, workload: ConvWorkload, seed: int) -> None:
    """Draw a layer's inputs, once for all of its candidates, and compute what they must give for some of its images."""
    rng = np.random.default_rng(seed)
    few = replace(workload, n=min(workload.n, DIFFERENT_IMAGES))
    inputs = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes_of(few).items()}
    for name, array in inputs.items():
        np.save(f"{folder}/{name}.npy", array.astype(workload.dtype))
    weight = np.load(f"{folder}/weight.npy")
    np.save(f"{folder}/expected.npy", _expected(workload, weight, folder))


def read_input(folder: str, name: str, workload: ConvWorkload) -> NDArray:
    """One of a layer's inputs, as prepare() drew it."""
    array = np.load(f"{folder}/{name}.npy")
    return array if array.ndim == 1 else array[np.arange(workload.n) % len(array)]


def checked_images(n: int) -> list[int]:
    """The images of a batch that are compared: float64 takes its time."""
    return sorted({0, n // 2, n - 1})


def shapes_of(workload: ConvWorkload) -> dict[str, tuple[int, ...]]:
    """The inputs of a layer beside its filter, in calling order."""
    shapes: dict[str, tuple[int, ...]] = {"x": (workload.n, workload.c, workload.h, workload.w)}
    if workload.epilogue.bias:
        shapes["bias"] = (workload.k,)
    if workload.epilogue.residual:
        shapes["residual"] = (workload.n, workload.k, workload.p, workload.q)
    return shapes


def _expected(workload: ConvWorkload, weight: NDArray, folder: str) -> NDArray:
    epilogue, images = workload.epilogue, checked_images(workload.n)
    inputs = {name: read_input(folder, name, workload) for name in shapes_of(workload)}
    activation: Any = ("clip", *epilogue.bounds) if epilogue.activation == "clip" else epilogue.activation
    return oracle.conv2d(
        inputs["x"][images],
        weight,
        bias=inputs.get("bias"),
        residual=inputs["residual"][images] if epilogue.residual else None,
        stride=workload.stride,
        padding=workload.padding,
        dilation=workload.dilation,
        groups=workload.groups,
        activation=activation,
    )


def error_of(y: NDArray, expected: NDArray) -> float:
    """Relative error of the checked images of an output; infinite if anything of it is not finite."""
    if not np.isfinite(y).all():
        return float("inf")
    return oracle.relative_error(y[checked_images(len(y))], expected)
