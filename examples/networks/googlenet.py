"""GoogLeNet (Szegedy et al. 2015): inception v1 without auxiliary heads or batch norm. Names as in the paper."""

from __future__ import annotations

from examples.networks.seeded import SeededGraph
from examples.onnx_graph import Tensor

# Table 1 of the paper: 1×1, 3×3 reduce, 3×3, 5×5 reduce, 5×5, pool projection
_MODULES = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
_POOL_AFTER = {"3b": "pool3/3x3_s2", "4e": "pool4/3x3_s2"}


def googlenet(net: SeededGraph) -> Tensor:
    """Add all layers to net, from its input (n, 3, 224, 224) to the logits (n, 1000)."""
    x = _conv_relu(net, "conv1/7x7_s2", net.input, 64, 7, stride=2)
    x = net.local_response_norm("pool1/norm1", _halve(net, "pool1/3x3_s2", x))
    x = _conv_relu(net, "conv2/3x3_reduce", x, 64, 1)
    x = _conv_relu(net, "conv2/3x3", x, 192, 3)
    x = _halve(net, "pool2/3x3_s2", net.local_response_norm("conv2/norm2", x))
    for module, widths in _MODULES.items():
        x = _inception(net, f"inception_{module}", x, widths)
        if module in _POOL_AFTER:
            x = _halve(net, _POOL_AFTER[module], x)
    x = net.global_average_pool("pool5/7x7_s1", x)
    return net.seeded_linear("loss3/classifier", net.flatten("flatten", x, x.channels), 1000)


def _inception(net: SeededGraph, name: str, x: Tensor, widths: tuple[int, ...]) -> Tensor:
    direct, reduce_3, width_3, reduce_5, width_5, projection = widths
    branch_3 = _conv_relu(net, f"{name}/3x3_reduce", x, reduce_3, 1)
    branch_5 = _conv_relu(net, f"{name}/5x5_reduce", x, reduce_5, 1)
    pooled = net.max_pool(f"{name}/pool", x, 3, 1, padding=1)
    parts = [
        _conv_relu(net, f"{name}/1x1", x, direct, 1),
        _conv_relu(net, f"{name}/3x3", branch_3, width_3, 3),
        _conv_relu(net, f"{name}/5x5", branch_5, width_5, 5),
        _conv_relu(net, f"{name}/pool_proj", pooled, projection, 1),
    ]
    return net.concat(f"{name}/output", parts)


def _halve(net: SeededGraph, name: str, x: Tensor) -> Tensor:
    return net.max_pool(name, x, 3, 2, ceil_mode=True)


def _conv_relu(net: SeededGraph, name: str, x: Tensor, out_channels: int, kernel: int, *, stride: int = 1) -> Tensor:
    x = net.seeded_conv(name, x, out_channels, kernel, stride=stride, padding=kernel // 2, bias=True)
    return net.relu(f"{name}/relu", x)
