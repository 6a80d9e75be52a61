"""MobileNetV1 (Howard et al. 2017), width 1.0, with ReLU6 as in the authors' code. Names as in that code."""

from __future__ import annotations

from examples.networks.seeded import SeededGraph
from examples.onnx_graph import Tensor

# output channels and stride of each depthwise-separable pair
_PAIRS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


def mobilenetv1(net: SeededGraph) -> Tensor:
    """Add all layers to net, from its input (n, 3, 224, 224) to the logits (n, 1000)."""
    x = _conv_bn_relu6(net, "Conv2d_0", net.input, 32, 3, stride=2)
    for index, (out_channels, stride) in enumerate(_PAIRS, start=1):
        x = _conv_bn_relu6(net, f"Conv2d_{index}_depthwise", x, x.channels, 3, stride=stride, groups=x.channels)
        x = _conv_bn_relu6(net, f"Conv2d_{index}_pointwise", x, out_channels, 1)
    x = net.global_average_pool("AvgPool_1a", x)
    return net.seeded_linear("Logits", net.flatten("flatten", x, x.channels), 1000)


def _conv_bn_relu6(
    net: SeededGraph, name: str, x: Tensor, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> Tensor:
    x = net.seeded_conv(name, x, out_channels, kernel, stride=stride, padding=kernel // 2, groups=groups)
    return net.relu6(f"{name}/Relu6", net.seeded_batch_norm(f"{name}/BatchNorm", x))
