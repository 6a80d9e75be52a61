"""Any batch up to a library's largest one: the smallest bucket that holds it, inputs padded, outputs cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from tvm_sparse.deploy import tensors
from tvm_sparse.deploy.metadata import BatchSizes, Metadata, TensorSpec
from tvm_sparse.errors import InputError


class Batching:
    """Inputs and outputs of a library that serves several batch sizes, on one device ("cpu" or "cuda", its index)."""

    def __init__(self, tvm_ffi: Any, metadata: Metadata, sizes: BatchSizes, place: tuple[str, int]) -> None:
        self.sizes = sizes
        self._tvm_ffi = tvm_ffi
        self._specs = metadata.inputs
        self._follows = [spec.name in sizes.inputs for spec in self._specs]
        self._place = place

    def to_device(self, values: Sequence[Any]) -> list[Any]:
        """Tensors of the smallest bucket that holds the batch, one per input: its images, then zeros.

        Raises
        ------
        InputError
            A value is no array of the right shape and dtype, or the batch is none that is served.
        """
        n = self.batch_of(values)
        bucket = self.sizes.bucket(n)
        made = []
        for spec, value, follows in zip(self._specs, values, self._follows, strict=True):
            wanted = resized(spec, n) if follows else spec
            tensor = tensors.to_tensor(self._tvm_ffi, wanted, value, *self._place)
            made.append(self._padded(tensor, resized(spec, bucket)) if follows and n < bucket else tensor)
        return made

    def bucket_of(self, inputs: Sequence[Any]) -> int:
        """The bucket that `to_device` made these tensors for."""
        return int(inputs[self._follows.index(True)].shape[0])

    def cut(self, results: Sequence[Any], values: Sequence[Any]) -> tuple[Any, ...]:
        """The outputs for the images that were given, in the memory of `results`."""
        n = self.batch_of(values)
        return tuple(result if int(result.shape[0]) == n else images(self._tvm_ffi, result, n) for result in results)

    def batch_of(self, values: Sequence[Any]) -> int:
        """The leading size that the inputs with a batch share.

        Raises
        ------
        InputError
            They have different ones, or one that the library does not serve.
        """
        named = [
            (spec.name, size)
            for spec, value, follows in zip(self._specs, values, self._follows, strict=True)
            if follows and (size := self._leading(value)) is not None  # what has none is refused as it is converted
        ]
        for name, size in named:
            check_batch(self.sizes, size, f"input {name!r} has batch {size}")
            if size != named[0][1]:
                raise InputError(f"input {name!r} has batch {size}, input {named[0][0]!r} has {named[0][1]}")
        return named[0][1] if named else self.sizes.largest

    def _leading(self, value: Any) -> int | None:
        """The leading size of an array or DLPack tensor; None for what is neither, or has no dimension."""
        if not hasattr(value, "shape"):
            if not hasattr(value, "__dlpack__"):
                return None
            value = self._tvm_ffi.from_dlpack(value)
        shape = tuple(value.shape)
        return int(shape[0]) if shape else None

    def _padded(self, tensor: Any, spec: TensorSpec) -> Any:
        n, bucket = int(tensor.shape[0]), spec.shape[0]
        whole = tensors.allocate(self._tvm_ffi, spec, *self._place)
        tensors.copy_tensor(self._tvm_ffi, tensor, images(self._tvm_ffi, whole, n))
        size = image_bytes(self._tvm_ffi, spec)
        rest = images(self._tvm_ffi, whole, bucket - n, n * size)
        tensors.copy_bytes(self._tvm_ffi, np.zeros((bucket - n) * size, np.uint8), rest)
        return whole


def images(tvm_ffi: Any, tensor: Any, n: int, offset_bytes: int = 0) -> Any:
    """So many images of a tensor, in its memory."""
    view = tvm_ffi.get_global_func("runtime.TVMTensorCreateView")
    return view(tensor, tvm_ffi.Shape((n, *tensor.shape[1:])), tensor.dtype, offset_bytes)


def image_bytes(tvm_ffi: Any, spec: TensorSpec) -> int:
    """The size of one image."""
    return prod(spec.shape[1:]) * int(tvm_ffi.dtype(spec.dtype).itemsize)


def bucket_for(metadata: Metadata, batch: int | None) -> int | None:
    """The batch size compiled for that serves `batch`; None for None.

    Raises
    ------
    InputError
        The library does not serve this batch, or was compiled for one shape and does not say which batch that is.
    """
    if batch is None:
        return None
    if metadata.batch is None:
        raise InputError(f"batch {batch}: the library was compiled for one shape only, not for a range of batches")
    check_batch(metadata.batch, batch, f"batch {batch}")
    return metadata.batch.bucket(batch)


def specs_for(metadata: Metadata, batch: int | None) -> tuple[TensorSpec, ...]:
    """The inputs of a library with a batch, by default the largest.

    Raises
    ------
    InputError
        As for `bucket_for`.
    """
    bucket_for(metadata, batch)
    if batch is None or metadata.batch is None:
        return metadata.inputs
    follows = metadata.batch.inputs
    return tuple(resized(spec, batch) if spec.name in follows else spec for spec in metadata.inputs)


def outputs_for(metadata: Metadata, batch: int | None) -> tuple[TensorSpec, ...]:
    """The outputs of a library with a batch, by default the largest."""
    outputs = metadata.outputs
    return outputs if batch is None else tuple(resized(spec, batch) for spec in outputs)


def check_batch(sizes: BatchSizes, n: int, what: str) -> None:
    """Refuse a batch that is not served.

    Raises
    ------
    InputError
        It is below 1 or above the largest; the message begins with `what`.
    """
    if not 1 <= n <= sizes.largest:
        hint = ": split it, or compile for a larger one" if n > 0 else ""
        raise InputError(f"{what}, the library serves 1 to {sizes.largest}{hint}")


def resized(spec: TensorSpec, n: int) -> TensorSpec:
    """The spec with a batch of n."""
    return replace(spec, shape=(n, *spec.shape[1:]))


def split(values: Sequence[Any], metadata: Metadata, devices: int) -> Iterator[list[Any]]:
    """The inputs of a batch of any size in parts that a network takes: as equal and as few as keep all devices busy.

    Raises
    ------
    InputError
        A value is no numpy array, their batches differ, or the library takes another one at a time.
    """
    for spec, value in zip(metadata.inputs, values, strict=True):
        if not isinstance(value, np.ndarray):
            raise InputError(f"input {spec.name!r}: {type(value).__name__} is no numpy array; use map for others")
    sizes = metadata.batch
    if sizes is None and all(value.shape == spec.shape for spec, value in zip(metadata.inputs, values, strict=True)):
        yield list(values)
        return
    single = 0 if sizes else _single_batch(metadata)
    follows = [sizes is None or spec.name in sizes.inputs for spec in metadata.inputs]
    batched = [(spec.name, value) for spec, value, cut in zip(metadata.inputs, values, follows, strict=True) if cut]
    counts = {name: len(value) if value.ndim else 0 for name, value in batched}
    name, n = next(iter(counts.items()))
    other = next((other for other in counts if counts[other] != n), None)
    if other is not None:
        raise InputError(f"input {other!r} has batch {counts[other]}, input {name!r} has {n}")
    if n < 1:
        raise InputError(f"input {name!r} has no images")
    if sizes is not None:
        parts = min(n, -(-n // (sizes.largest * devices)) * devices)
    elif n % single:
        raise InputError(f"input {name!r} has batch {n}, the library takes {single} at a time: give a multiple")
    else:
        parts = n // single
    ends = [n * (index + 1) // parts for index in range(parts)]
    for start, end in zip([0, *ends], ends, strict=False):
        yield [value[start:end] if cut else value for value, cut in zip(values, follows, strict=True)]


def _single_batch(metadata: Metadata) -> int:
    """The leading size that all inputs and outputs of a library for one batch size share."""
    leading = {spec.shape[0] if spec.shape else 0 for spec in (*metadata.inputs, *metadata.outputs)}
    if len(leading) != 1 or 0 in leading:
        raise InputError("the inputs and outputs of this library do not share a batch: use map")
    return leading.pop()
