"""The dense operators of the example networks: how Relax says each, how torch does, what it computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np

#: (torch, x, weights, whether bias and activation are wanted) -> y
TorchCall = Callable[[Any, Any, dict[str, Any], bool], Any]
#: (relax, x, weights) -> y
RelaxCall = Callable[[Any, Any, dict[str, Any]], Any]


@dataclass(frozen=True)
class Operator:
    """One operator on x (n, *shape), float32. `multiply_adds` are those of one image.

    The peer is timed without bias and activation, which cost it further kernels; ours has them in its kernel.
    """

    name: str
    shape: tuple[int, ...]
    weights: dict[str, tuple[int, ...]]
    relax: RelaxCall
    torch: TorchCall
    multiply_adds: int = 0

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """The weights, scaled so that outputs are about 1."""
        rng = np.random.default_rng(len(self.name))
        return {
            name: (rng.standard_normal(shape) / np.sqrt(max(1, prod(shape[1:])))).astype(np.float32)
            for name, shape in self.weights.items()
        }


def relax_module(operator: Operator, batch: int) -> Any:
    """A network of this operator alone, its weights constants."""
    from tvm import relax

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((batch, *operator.shape), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            weights = {name: relax.const(array) for name, array in operator.arrays().items()}
            y = builder.emit_output(operator.relax(relax, x, weights))
        builder.emit_func_output(y)
    return builder.get()


def conv(
    name: str, c: int, size: int, k: int, kernel: int, stride: int = 1, padding: int = 0, groups: int = 1
) -> Operator:
    """A square convolution with bias and ReLU."""
    out = (size + 2 * padding - kernel) // stride + 1
    shape = (k, c // groups, kernel, kernel)
    options = {"padding": (padding, padding), "groups": groups}

    def in_relax(relax: Any, x: Any, weights: dict[str, Any]) -> Any:
        y = relax.op.nn.conv2d(x, weights["w"], strides=(stride, stride), **options)
        return relax.op.nn.relu(relax.op.add(y, relax.op.reshape(weights["b"], (1, k, 1, 1))))

    def in_torch(torch: Any, x: Any, weights: dict[str, Any], whole: bool) -> Any:
        y = torch.nn.functional.conv2d(x, weights["w"], weights["b"] if whole else None, stride, **options)
        return y.relu() if whole else y

    return Operator(name, (c, size, size), {"w": shape, "b": (k,)}, in_relax, in_torch, prod(shape) * out * out)


def pointwise(name: str, c: int, size: int, k: int, stride: int = 1) -> Operator:
    return conv(name, c, size, k, 1, stride)


def depthwise(name: str, c: int, size: int, stride: int) -> Operator:
    return conv(name, c, size, c, 3, stride, 1, c)


def max_pool(
    name: str, c: int, size: int, kernel: int, stride: int, padding: int = 0, ceil_mode: bool = False
) -> Operator:
    def in_relax(relax: Any, x: Any, weights: dict[str, Any]) -> Any:
        square = ((kernel, kernel), (stride, stride), (padding, padding))
        return relax.op.nn.max_pool2d(x, *square, ceil_mode=ceil_mode)

    def in_torch(torch: Any, x: Any, weights: dict[str, Any], whole: bool) -> Any:
        return torch.nn.functional.max_pool2d(x, kernel, stride, padding, ceil_mode=ceil_mode)

    return Operator(name, (c, size, size), {}, in_relax, in_torch)


def global_average(name: str, c: int, size: int) -> Operator:
    return Operator(
        name,
        (c, size, size),
        {},
        lambda relax, x, weights: relax.op.mean(x, (2, 3), keepdims=True),
        lambda torch, x, weights, whole: x.mean((2, 3), keepdim=True),
    )


def linear(name: str, features: int, out: int) -> Operator:
    """A linear layer with bias and ReLU, its weight (out, features) as torch and ONNX keep it."""

    def in_relax(relax: Any, x: Any, weights: dict[str, Any]) -> Any:
        return relax.op.nn.relu(relax.op.add(relax.op.matmul(x, relax.op.permute_dims(weights["w"])), weights["b"]))

    def in_torch(torch: Any, x: Any, weights: dict[str, Any], whole: bool) -> Any:
        y = torch.nn.functional.linear(x, weights["w"], weights["b"] if whole else None)
        return y.relu() if whole else y

    shapes = {"w": (out, features), "b": (out,)}
    return Operator(name, (features,), shapes, in_relax, in_torch, features * out)


def softmax(name: str, classes: int) -> Operator:
    return Operator(
        name,
        (classes,),
        {},
        lambda relax, x, weights: relax.op.nn.softmax(x, 1),
        lambda torch, x, weights, whole: x.softmax(1),
    )


def response_norm(name: str, c: int, size: int) -> Operator:
    """AlexNet's, over 5 channels; said as TVM's ONNX frontend says it."""

    def in_relax(relax: Any, x: Any, weights: dict[str, Any]) -> Any:
        squares = relax.op.expand_dims(relax.op.multiply(x, x), 1)
        mean = relax.op.nn.avg_pool3d(squares, (5, 1, 1), (1, 1, 1), (2, 0, 0, 2, 0, 0), count_include_pad=True)
        scale, shift, power = (relax.const(value, "float32") for value in (5e-4, 2.0, 0.75))
        scaled = relax.op.add(relax.op.multiply(relax.op.squeeze(mean, 1), scale), shift)
        return relax.op.divide(x, relax.op.power(scaled, power))

    def in_torch(torch: Any, x: Any, weights: dict[str, Any], whole: bool) -> Any:
        return torch.nn.functional.local_response_norm(x, 5, 5e-4, 0.75, 2.0)

    return Operator(name, (c, size, size), {}, in_relax, in_torch)


def concat(name: str, c: int, size: int) -> Operator:
    """Two halves of the channels, swapped."""

    def in_relax(relax: Any, x: Any, weights: dict[str, Any]) -> Any:
        halves = [relax.op.strided_slice(x, [1], [at], [at + c // 2]) for at in (c // 2, 0)]
        return relax.op.concat(halves, 1)

    def in_torch(torch: Any, x: Any, weights: dict[str, Any], whole: bool) -> Any:
        return torch.cat([x[:, c // 2 :], x[:, : c // 2]], 1)

    return Operator(name, (c, size, size), {}, in_relax, in_torch)


def scale_relu(name: str, c: int, size: int) -> Operator:
    """An elementwise chain with a broadcast."""
    return Operator(
        name,
        (c, size, size),
        {"b": (c,)},
        lambda relax, x, weights: relax.op.nn.relu(relax.op.multiply(x, relax.op.reshape(weights["b"], (1, c, 1, 1)))),
        lambda torch, x, weights, whole: (x * weights["b"].view(1, c, 1, 1)).relu_(),
    )


_first = partial(conv, c=3)
OPERATORS: tuple[Operator, ...] = (
    _first("first_resnet", size=224, k=64, kernel=7, stride=2, padding=3),
    _first("first_alexnet", size=227, k=96, kernel=11, stride=4),
    _first("first_vgg", size=224, k=64, kernel=3, padding=1),
    _first("first_mobilenet", size=224, k=32, kernel=3, stride=2, padding=1),
    conv("r50_56_3", 64, 56, 64, 3, 1, 1),
    conv("r50_28_3", 128, 28, 128, 3, 1, 1),
    conv("r50_14_3", 256, 14, 256, 3, 1, 1),
    conv("r50_7_3", 512, 7, 512, 3, 1, 1),
    conv("r50_28_3s2", 128, 56, 128, 3, 2, 1),
    pointwise("r50_56_1e", 64, 56, 256),
    pointwise("r50_56_1r", 256, 56, 64),
    pointwise("r50_14_1e", 256, 14, 1024),
    pointwise("r50_14_1r", 1024, 14, 256),
    pointwise("r50_7_1r", 2048, 7, 512),
    pointwise("r50_28_1s2", 256, 56, 512, 2),
    conv("goog4e3", 160, 14, 320, 3, 1, 1),
    conv("alexnet_conv2", 96, 27, 256, 5, 1, 2, 2),
    pointwise("mobile_14_1", 512, 14, 512),
    depthwise("dw_112", 32, 112, 1),
    depthwise("dw_112s2", 64, 112, 2),
    depthwise("dw_56", 128, 56, 1),
    depthwise("dw_28", 256, 28, 1),
    depthwise("dw_14", 512, 14, 1),
    depthwise("dw_14s2", 512, 14, 2),
    depthwise("dw_7", 1024, 7, 1),
    max_pool("max3s2_112", 64, 112, 3, 2, 1),
    max_pool("max3s2_55", 96, 55, 3, 2),
    max_pool("max3s2c_56", 192, 56, 3, 2, ceil_mode=True),
    max_pool("max3s1_28", 192, 28, 3, 1, 1),
    max_pool("max3s1_14", 480, 14, 3, 1, 1),
    max_pool("max2s2_224", 64, 224, 2, 2),
    global_average("average_2048", 2048, 7),
    global_average("average_1024", 1024, 7),
    linear("fc_2048_1000", 2048, 1000),
    linear("fc_1024_1000", 1024, 1000),
    linear("fc_9216_4096", 9216, 4096),
    linear("fc_4096_4096", 4096, 4096),
    linear("fc_4096_1000", 4096, 1000),
    softmax("softmax_1000", 1000),
    response_norm("lrn_96_55", 96, 55),
    concat("concat_256_28", 256, 28),
    scale_relu("scale_relu_256_56", 256, 56),
)
