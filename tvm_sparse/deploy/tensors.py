"""Users' arrays to tensors that compiled code may read, and back.

Compiled code takes dense row-major tensors that start at a multiple of 64 bytes; anything else is copied into one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_sparse.deploy.metadata import TensorSpec
from tvm_sparse.errors import InputError

ALIGNMENT_BYTES = 64
DEVICE_TYPES = {"cpu": 1, "cuda": 2}  # as DLPack numbers them


def random_inputs(specs: Sequence[TensorSpec], seed: int = 0) -> dict[str, NDArray[Any]]:
    """Seeded inputs by name: standard normal floats; 0 or 1 for integers and bools, valid as any index or flag."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for spec in specs:
        floats = np.issubdtype(np.dtype(spec.dtype), np.floating)
        values = rng.standard_normal(spec.shape) if floats else rng.integers(0, 2, spec.shape)
        arrays[spec.name] = np.asarray(values).astype(spec.dtype)
    return arrays


def in_order(specs: Sequence[TensorSpec], positional: Sequence[Any], named: Mapping[str, Any]) -> list[Any]:
    """One value per input, from values by position and by name.

    Raises
    ------
    InputError
        One is missing, given twice, or not an input.
    """
    if not named and len(positional) == len(specs):
        return list(positional)
    names = [spec.name for spec in specs]
    expected = ", ".join(f"{spec.name} {spec.dtype} {_shape(spec.shape)}" for spec in specs)
    if len(positional) > len(names):
        raise InputError(f"{len(positional)} inputs given, the network takes {len(names)}: {expected}")
    values = dict(zip(names, positional, strict=False))
    for name, value in named.items():
        if name not in names:
            raise InputError(f"the network has no input {name!r}; it takes {expected}")
        if name in values:
            raise InputError(f"input {name!r} was given twice, by position and by name")
        values[name] = value
    missing = [name for name in names if name not in values]
    if missing:
        raise InputError(f"input {missing[0]!r} is missing; the network takes {expected}")
    return [values[name] for name in names]


def framework(values: Sequence[Any]) -> str:
    """What the outputs shall be: "numpy" if every input is, "torch" if one is a torch tensor, else "dlpack"."""
    if all(isinstance(value, np.ndarray | np.generic) for value in values):
        return "numpy"
    return "torch" if any(type(value).__module__.split(".")[0] == "torch" for value in values) else "dlpack"


def to_tensor(tvm_ffi: Any, spec: TensorSpec, value: Any, kind: str, index: int) -> Any:
    """A tensor on the device ("cpu" or "cuda", its index) that holds `value`, which is shared where that is possible.

    Raises
    ------
    InputError
        It is no array, has another shape or dtype, or lies on another GPU.
    """
    if isinstance(value, np.ndarray | np.generic):
        return _from_numpy(tvm_ffi, spec, np.asarray(value), kind, index)
    if not hasattr(value, "__dlpack__"):
        raise InputError(f"input {spec.name!r}: {type(value).__name__} is no numpy array and has no DLPack interface")
    try:
        if getattr(value, "requires_grad", False):  # torch refuses to share a tensor that records gradients
            value = value.detach()
        if hasattr(value, "contiguous"):
            value = value.contiguous()
        usable, tensor = True, _shared(tvm_ffi, value)
        if tensor is None:
            usable, tensor = False, tvm_ffi.from_dlpack(value)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise InputError(f"input {spec.name!r}: cannot be read through DLPack: {error}") from error
    check(spec, tuple(tensor.shape), str(tensor.dtype))
    device = tensor.device
    if device.dlpack_device_type() == DEVICE_TYPES["cpu"] and (kind == "cuda" or not usable):
        return _from_numpy(tvm_ffi, spec, np.from_dlpack(tensor), kind, index)
    if (device.dlpack_device_type(), device.index) != (DEVICE_TYPES[kind], index):
        raise InputError(f"input {spec.name!r} lies on {device}, the network runs on {kind}:{index}: move it there")
    if not usable:
        whole = allocate(tvm_ffi, spec, kind, index)
        copy_tensor(tvm_ffi, tensor, whole)
        return whole
    return tensor


def allocate(tvm_ffi: Any, spec: TensorSpec, kind: str, index: int) -> Any:
    """A tensor of the spec's shape and dtype on the device, its values undefined."""
    shape = tvm_ffi.Shape(spec.shape)
    device = tvm_ffi.device(kind, index)
    return tvm_ffi.get_global_func("runtime.TVMTensorAllocWithScope")(shape, tvm_ffi.dtype(spec.dtype), device, None)


def copy_tensor(tvm_ffi: Any, source: Any, target: Any) -> None:
    """Copy to another tensor of the device, once what TVM's current stream was given is done; waits for the copy."""
    copy = tvm_ffi.get_global_func("runtime.TVMTensorCopyFromTo")
    if source.device.dlpack_device_type() == DEVICE_TYPES["cpu"]:
        copy(source, target)
        return
    wait = tvm_ffi.get_global_func("runtime.Device_StreamSync")
    current = tvm_ffi.get_raw_stream(source.device)
    wait(source.device, int(getattr(current, "value", current) or 0))  # TVM copies on the default stream
    copy(source, target)
    wait(source.device, 0)


def copy_bytes(tvm_ffi: Any, array: NDArray[Any], tensor: Any) -> None:
    """Fill a tensor on any device with the bytes of a row-major array of the same size."""
    pointer = array.ctypes.data_as(_void_p())
    tvm_ffi.get_global_func("runtime.TVMTensorCopyFromBytes")(tensor, pointer, array.nbytes)


def zeros(tvm_ffi: Any, spec: TensorSpec, kind: str, index: int) -> Any:
    """A tensor of zeros on the device."""
    return _from_numpy(tvm_ffi, spec, np.zeros(spec.shape, spec.dtype), kind, index)


def to_numpy(tvm_ffi: Any, tensor: Any) -> NDArray[Any]:
    """A copy of a tensor on any device. On a GPU this waits for what computes it."""
    if tensor.device.dlpack_device_type() == DEVICE_TYPES["cpu"]:
        return np.array(np.from_dlpack(tensor))
    array = np.empty(tuple(tensor.shape), np.dtype(str(tensor.dtype)))
    tvm_ffi.get_global_func("runtime.TVMTensorCopyToBytes")(tensor, array.ctypes.data_as(_void_p()), array.nbytes)
    return array


def _from_numpy(tvm_ffi: Any, spec: TensorSpec, array: NDArray[Any], kind: str, index: int) -> Any:
    check(spec, array.shape, str(array.dtype))
    array = np.ascontiguousarray(array).reshape(spec.shape)
    if kind != "cpu":
        tensor = allocate(tvm_ffi, spec, kind, index)
        copy_bytes(tvm_ffi, array, tensor)
        return tensor
    if array.ctypes.data % ALIGNMENT_BYTES or not array.flags.writeable:
        array = _aligned_copy(array)
    return tvm_ffi.from_dlpack(array)


def _aligned_copy(array: NDArray[Any]) -> NDArray[Any]:
    raw = np.empty(array.nbytes + ALIGNMENT_BYTES, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT_BYTES
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def _shared(tvm_ffi: Any, value: Any) -> Any:
    """A tensor in the memory of an array with a DLPack interface; None where compiled code cannot read it as it is."""
    try:
        return tvm_ffi.from_dlpack(value, require_alignment=ALIGNMENT_BYTES, require_contiguous=True)
    except (ValueError, RuntimeError):
        return None


def check(spec: TensorSpec, shape: tuple[int, ...], dtype: str) -> None:
    """Refuse what is not of the spec.

    Raises
    ------
    InputError
        Shape or dtype differ.
    """
    if dtype != spec.dtype:
        raise InputError(f"input {spec.name!r} has dtype {dtype}, expected {spec.dtype}")
    if shape != spec.shape:
        raise InputError(f"input {spec.name!r} has shape {_shape(shape)}, expected {_shape(spec.shape)}")


def _shape(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"


def _void_p() -> Any:
    import ctypes

    return ctypes.c_void_p
