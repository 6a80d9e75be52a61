"""ResNet-50 (He et al. 2016) in the v1.5 form: the stride of a block sits on its 3×3. Names as in torchvision."""

from __future__ import annotations

from examples.networks.seeded import SeededGraph
from examples.onnx_graph import Tensor

_STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))  # blocks, width of the 3×3
_EXPANSION = 4
_LAST_GAIN = 0.5  # of each block's last batch norm: keeps the sum over 16 blocks O(1)


def resnet50(net: SeededGraph) -> Tensor:
    """Add all layers to net, from its input (n, 3, 224, 224) to the logits (n, 1000)."""
    x = _conv_bn(net, "conv1", "bn1", net.input, 64, 7, stride=2, padding=3)
    x = net.max_pool("maxpool", net.relu("relu", x), 3, 2, padding=1)
    for stage, (blocks, width) in enumerate(_STAGES, start=1):
        for block in range(blocks):
            stride = 2 if stage > 1 and block == 0 else 1
            x = _bottleneck(net, f"layer{stage}.{block}", x, width, stride)
    x = net.global_average_pool("avgpool", x)
    return net.seeded_linear("fc", net.flatten("flatten", x, x.channels), 1000)


def _bottleneck(net: SeededGraph, name: str, x: Tensor, width: int, stride: int) -> Tensor:
    y = _conv_bn(net, f"{name}.conv1", f"{name}.bn1", x, width, 1)
    y = net.relu(f"{name}.relu1", y)
    y = _conv_bn(net, f"{name}.conv2", f"{name}.bn2", y, width, 3, stride=stride, padding=1)
    y = net.relu(f"{name}.relu2", y)
    y = _conv_bn(net, f"{name}.conv3", f"{name}.bn3", y, width * _EXPANSION, 1, gain=_LAST_GAIN)
    if x.channels != y.channels:
        x = _conv_bn(net, f"{name}.downsample.0", f"{name}.downsample.1", x, y.channels, 1, stride=stride)
    return net.relu(f"{name}.relu3", net.add(f"{name}.add", y, x))


def _conv_bn(
    net: SeededGraph,
    conv: str,
    norm: str,
    x: Tensor,
    out_channels: int,
    kernel: int,
    *,
    stride: int = 1,
    padding: int = 0,
    gain: float = 1.0,
) -> Tensor:
    x = net.seeded_conv(conv, x, out_channels, kernel, stride=stride, padding=padding)
    return net.seeded_batch_norm(norm, x, gain=gain)
