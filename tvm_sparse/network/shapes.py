"""Numbers for the dimensions that a model leaves open, by what the caller says about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tvm_sparse.errors import InputError, ModelError
from tvm_sparse.network.imported import times

NAMELESS = "?"


def pin_shapes(
    inputs: Mapping[str, Sequence[int | str] | None],
    label: str,
    batch: int | None,
    shapes: Mapping[str, Sequence[int]] | None,
) -> dict[str, tuple[int, ...]]:
    """The shape of every input.

    Parameters
    ----------
    inputs
        By name the dimensions in the model: a number, a symbol or "?"; None where even their number is open.
    label
        The model, for messages.
    batch
        The size of leading dimensions that are open.
    shapes
        Whole shapes by name. A symbol that one input pins is pinned everywhere.

    Raises
    ------
    InputError
        When a name, rank or size does not fit the model.
    ModelError
        When a dimension stays open.
    """
    shapes = {name: [int(size) for size in shape] for name, shape in (shapes or {}).items()}
    for name in shapes:
        if name not in inputs:
            raise InputError(f"{label}: no input named '{name}' to give a shape to; the inputs are {', '.join(inputs)}")
    symbols: dict[str, int] = {}
    for name, shape in shapes.items():
        _match(name, shape, inputs[name], symbols, label)
    if batch is not None:
        _take_batch({name: dims for name, dims in inputs.items() if name not in shapes and dims}, label, batch, symbols)
    pinned = {}
    for name, dims in inputs.items():
        if name in shapes:
            pinned[name] = tuple(shapes[name])
            continue
        if dims is None:
            raise ModelError(f"{label}: input '{name}' has no shape: give one, e.g. --shape {name}=1x3x224x224")
        sizes = [symbols.get(dim, dim) if isinstance(dim, str) else dim for dim in dims]
        if sizes and sizes[0] == NAMELESS and batch is not None:
            sizes[0] = batch
        pinned[name] = _closed(name, sizes, label)
    return pinned


def _match(
    name: str, shape: Sequence[int], dims: Sequence[int | str] | None, symbols: dict[str, int], label: str
) -> None:
    if min(shape, default=1) < 1:
        raise InputError(f"{label}: shape {times(shape)} for input '{name}' has a size below 1")
    if dims is None:
        return
    if len(dims) != len(shape) or any(
        isinstance(dim, int) and dim != size for dim, size in zip(dims, shape, strict=True)
    ):
        raise InputError(f"{label}: shape {times(shape)} does not fit input '{name}', which is {times(dims)}")
    for dim, size in zip(dims, shape, strict=True):
        if isinstance(dim, str) and dim != NAMELESS and symbols.setdefault(dim, size) != size:
            raise InputError(f"{label}: dimension '{dim}' of input '{name}' cannot be {symbols[dim]} and {size}")


def _take_batch(inputs: Mapping[str, Sequence[int | str]], label: str, batch: int, symbols: dict[str, int]) -> None:
    """Bind the symbols of open leading dimensions; at least one input must take the batch."""
    if batch < 1:
        raise InputError(f"{label}: batch {batch} is not a positive number")
    leading = {name: dims[0] for name, dims in inputs.items()}
    for dim in leading.values():
        if isinstance(dim, str) and dim != NAMELESS:
            symbols.setdefault(dim, batch)
    sizes = {name: symbols.get(dim, batch) if isinstance(dim, str) else dim for name, dim in leading.items()}
    if sizes and batch not in sizes.values():
        name, size = next(iter(sizes.items()))
        raise InputError(f"{label}: batch {batch} asked for, but input '{name}' is fixed at {size}")


def _closed(name: str, sizes: Sequence[int | str], label: str) -> tuple[int, ...]:
    still_open = [axis for axis, size in enumerate(sizes) if isinstance(size, str)]
    if still_open:
        example = times(size if isinstance(size, int) else 224 if axis else 1 for axis, size in enumerate(sizes))
        option = "--batch N" if still_open == [0] else f"--shape {name}={example}"
        names = ", ".join(f"{axis} ('{sizes[axis]}')" for axis in still_open)
        raise ModelError(
            f"{label}: input '{name}' ({times(sizes)}) leaves dimension {names} open: pin it with {option}"
        )
    return tuple(int(size) for size in sizes)
