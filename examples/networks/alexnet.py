"""AlexNet (Krizhevsky et al. 2012): two groups in conv2, conv4 and conv5, local response normalisation, 227×227."""

from __future__ import annotations

from examples.networks.seeded import SeededGraph
from examples.onnx_graph import Tensor


def alexnet(net: SeededGraph) -> Tensor:
    """Add all layers to net, from its input (n, 3, 227, 227) to the logits (n, 1000)."""
    x = _conv_relu(net, 1, net.input, 96, 11, stride=4)
    x = net.max_pool("pool1", net.local_response_norm("norm1", x), 3, 2)
    x = _conv_relu(net, 2, x, 256, 5, padding=2, groups=2)
    x = net.max_pool("pool2", net.local_response_norm("norm2", x), 3, 2)
    x = _conv_relu(net, 3, x, 384, 3, padding=1)
    x = _conv_relu(net, 4, x, 384, 3, padding=1, groups=2)
    x = _conv_relu(net, 5, x, 256, 3, padding=1, groups=2)
    x = net.flatten("flatten", net.max_pool("pool5", x, 3, 2), 256 * 6 * 6)
    x = net.relu("relu6", net.seeded_linear("fc6", x, 4096))
    x = net.relu("relu7", net.seeded_linear("fc7", x, 4096))
    return net.seeded_linear("fc8", x, 1000)


def _conv_relu(
    net: SeededGraph,
    number: int,
    x: Tensor,
    out_channels: int,
    kernel: int,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> Tensor:
    name = f"conv{number}"
    x = net.seeded_conv(name, x, out_channels, kernel, stride=stride, padding=padding, groups=groups, bias=True)
    return net.relu(f"relu{number}", x)
