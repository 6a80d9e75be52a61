"""What each ONNX operator is in torch. An operator takes an `Op`, one node under translation, and emits calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from tvm_sparse.peers.onnx_module import Op

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_OLD_SOFTMAX = 13  # before it, softmax ran over all axes from `axis` on


def _conv(op: Op) -> Any:
    rank = op.array(1).ndim - 2
    x, pads = _padded(op, rank, 0.0)
    strides, dilations = op.attribute("strides", [1] * rank), op.attribute("dilations", [1] * rank)
    return op.call(_CONVOLUTIONS[rank], x, op.value(1), op.value(2), strides, pads, dilations, op.attribute("group", 1))


def _padded(op: Op, rank: int, fill: float) -> tuple[Any, list[int]]:
    """The input and the padding that torch does itself: unlike ends get an operator in front."""
    if op.attribute("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise op.unsupported("automatic padding")
    pads = list(op.attribute("pads", [0] * 2 * rank))
    if pads[:rank] == pads[rank:]:
        return op.value(0), pads[:rank]
    ends = [size for axis in reversed(range(rank)) for size in (pads[axis], pads[rank + axis])]
    return op.call(F.pad, op.value(0), ends, "constant", fill), [0] * rank


def _batch_norm(op: Op) -> Any:
    scale, shift, mean, variance = (op.value(i) for i in range(1, 5))
    return op.call(F.batch_norm, op.value(0), mean, variance, scale, shift, False, 0.0, op.attribute("epsilon", 1e-5))


def _max_pool(op: Op) -> Any:
    kernel = op.attribute("kernel_shape")
    rank = len(kernel)
    x, pads = _padded(op, rank, float("-inf"))
    strides, dilations = op.attribute("strides", [1] * rank), op.attribute("dilations", [1] * rank)
    return op.call(_MAX_POOLS[rank], x, kernel, strides, pads, dilations, bool(op.attribute("ceil_mode", 0)))


def _average_pool(op: Op) -> Any:
    kernel = op.attribute("kernel_shape")
    rank = len(kernel)
    pads, counted = op.attribute("pads", [0] * 2 * rank), bool(op.attribute("count_include_pad", 0))
    if op.attribute("dilations", [1] * rank) != [1] * rank or (pads[:rank] != pads[rank:] and not counted):
        raise op.unsupported("dilation, or padding that differs between the ends,")
    x, pads = _padded(op, rank, 0.0)
    strides = op.attribute("strides", [1] * rank)
    return op.call(_AVERAGE_POOLS[rank], x, kernel, strides, pads, bool(op.attribute("ceil_mode", 0)), counted)


def _gemm(op: Op) -> Any:
    alpha, beta = op.attribute("alpha", 1.0), op.attribute("beta", 1.0)
    x = op.call(torch.t, op.value(0)) if op.attribute("transA", 0) else op.value(0)
    if op.is_constant(1) and (alpha, beta) == (1.0, 1.0) and (not op.has(2) or op.rank(2) == 1):
        weight = op.array(1) if op.attribute("transB", 0) else op.array(1).T
        return op.call(F.linear, x, op.weight(weight), op.value(2))
    y = op.call(torch.t, op.value(1)) if op.attribute("transB", 0) else op.value(1)
    product = op.call(torch.mul, op.call(torch.matmul, x, y), alpha)
    return op.call(torch.add, product, op.call(torch.mul, op.value(2), beta)) if op.has(2) else product


def _clip(op: Op) -> Any:
    bounds = []
    for position, name in ((1, "min"), (2, "max")):
        given = op.array(position).item() if op.has(position) else op.attribute(name, None)
        bounds.append(None if given is None else float(given))
    return op.call(torch.clamp, op.value(0), *bounds)


def _local_response_norm(op: Op) -> Any:
    size = op.attribute("size")
    if size % 2 == 0:
        raise op.unsupported("an even window")
    alpha, beta, bias = op.attribute("alpha", 1e-4), op.attribute("beta", 0.75), op.attribute("bias", 1.0)
    return op.call(F.local_response_norm, op.value(0), size, alpha, beta, bias)


def _softmax(function: Callable[..., Any]) -> Callable[[Op], Any]:
    def translate(op: Op) -> Any:
        if op.opset >= _OLD_SOFTMAX:
            return op.call(function, op.value(0), op.attribute("axis", -1))
        if (rank := op.rank(0)) is None or op.attribute("axis", 1) not in (rank - 1, -1):
            raise op.unsupported("more than the last axis")
        return op.call(function, op.value(0), -1)

    return translate


def _flatten(op: Op) -> Any:
    axis = op.attribute("axis", 1)
    if axis == 1:
        return op.call(torch.flatten, op.value(0), 1)
    if axis == 0:
        return op.call(torch.reshape, op.value(0), [1, -1])
    raise op.unsupported(f"axis {axis}")


def _reshape(op: Op) -> Any:
    if op.attribute("allowzero", 0) and 0 in op.integers(1):
        raise op.unsupported("allowzero")
    return op.call(reshape_like, op.value(0), op.integers(1))


def reshape_like(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """As ONNX has it: 0 keeps the size that x has there."""
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)])


def pixel_mean(x: torch.Tensor) -> torch.Tensor:
    """The mean over all axes behind the channels."""
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


def pixel_max(x: torch.Tensor) -> torch.Tensor:
    """The maximum over all axes behind the channels."""
    return x.amax(tuple(range(2, x.dim())), keepdim=True)


def _axes(op: Op) -> list[int] | None:
    return op.integers(1) if op.has(1) else op.attribute("axes", None)


def _squeeze(op: Op) -> Any:
    axes = _axes(op)
    return op.call(torch.squeeze, op.value(0), *([] if axes is None else [tuple(axes)]))


def _unsqueeze(op: Op) -> Any:
    x, axes = op.value(0), sorted(_axes(op) or [])
    if axes and axes[0] < 0:
        raise op.unsupported("a negative axis")
    for axis in axes:
        x = op.call(torch.unsqueeze, x, axis)
    return x


def _reduce_mean(op: Op) -> Any:
    keep = bool(op.attribute("keepdims", 1))
    axes = _axes(op)
    if axes is None:
        raise op.unsupported("no axes")
    return op.call(torch.mean, op.value(0), axes, keep)


def _pad(op: Op) -> Any:
    pads = op.integers(1) if op.has(1) else op.attribute("pads")
    if op.attribute("mode", b"constant") != b"constant" or op.has(3):
        raise op.unsupported("a mode other than constant, or axes,")
    fill = op.array(2).item() if op.has(2) else op.attribute("value", 0.0)
    rank = len(pads) // 2
    ends = [int(size) for axis in reversed(range(rank)) for size in (pads[axis], pads[rank + axis])]
    return op.call(F.pad, op.value(0), ends, "constant", float(fill))


def _hard_sigmoid(op: Op) -> Any:
    alpha, beta = op.attribute("alpha", 0.2), op.attribute("beta", 0.5)
    return op.call(torch.clamp, op.call(torch.add, op.call(torch.mul, op.value(0), alpha), beta), 0.0, 1.0)


def _unary(function: Callable[..., Any], *arguments: Any) -> Callable[[Op], Any]:
    return lambda op: op.call(function, op.value(0), *arguments)


def _binary(function: Callable[..., Any]) -> Callable[[Op], Any]:
    return lambda op: op.call(function, op.value(0), op.value(1))


OPERATORS: dict[str, Callable[[Op], Any]] = {
    "Add": _binary(torch.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": lambda op: op.call(torch.cat, op.values(), op.attribute("axis")),
    "Conv": _conv,
    "Div": _binary(torch.div),
    "Dropout": lambda op: op.value(0),
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": _unary(pixel_mean),
    "GlobalMaxPool": _unary(pixel_max),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(F.hardswish),
    "Identity": lambda op: op.value(0),
    "LRN": _local_response_norm,
    "LeakyRelu": lambda op: op.call(F.leaky_relu, op.value(0), op.attribute("alpha", 0.01)),
    "LogSoftmax": _softmax(F.log_softmax),
    "MatMul": _binary(torch.matmul),
    "MaxPool": _max_pool,
    "Mul": _binary(torch.mul),
    "Pad": _pad,
    "ReduceMean": _reduce_mean,
    "Relu": lambda op: op.call(F.relu, op.value(0), op.overwritable(0)),
    "Reshape": _reshape,
    "Sigmoid": _unary(torch.sigmoid),
    "Softmax": _softmax(F.softmax),
    "Squeeze": _squeeze,
    "Sub": _binary(torch.sub),
    "Tanh": _unary(torch.tanh),
    "Transpose": lambda op: op.call(torch.permute, op.value(0), op.attribute("perm")),
    "Unsqueeze": _unsqueeze,
}
