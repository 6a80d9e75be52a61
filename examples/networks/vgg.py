"""VGG-16 (Simonyan and Zisserman 2015), configuration D without batch norm. Names as in torchvision."""

from __future__ import annotations

from examples.networks.seeded import SeededGraph
from examples.onnx_graph import Tensor

_STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))  # convolutions, width


def vgg16(net: SeededGraph) -> Tensor:
    """Add all layers to net, from its input (n, 3, 224, 224) to the logits (n, 1000)."""
    x, index = net.input, 0
    for convolutions, width in _STAGES:
        for _ in range(convolutions):
            x = net.seeded_conv(f"features.{index}", x, width, 3, padding=1, bias=True)
            x = net.relu(f"features.{index + 1}", x)
            index += 2
        x = net.max_pool(f"features.{index}", x, 2, 2)
        index += 1
    x = net.flatten("flatten", x, 512 * 7 * 7)
    x = net.relu("classifier.1", net.seeded_linear("classifier.0", x, 4096))
    x = net.relu("classifier.4", net.seeded_linear("classifier.3", x, 4096))
    return net.seeded_linear("classifier.6", x, 1000)
