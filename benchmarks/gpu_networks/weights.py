"""Published pruned filters and biases in the place of an example network's seeded ones.

Published are networks whose batch norms are folded: the batch norm behind a published filter becomes its bias. Layers
that are not published stay seeded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tvm_sparse.errors import InputError

#: The file with a network's filters.
FILES = {"mobilenetv1": "mobilenet_v1_90.npz"}


def networks_published(folder: Path) -> list[str]:
    """The networks for which a folder holds published filters.

    Raises
    ------
    InputError
        There is none.
    """
    found = [network for network, name in FILES.items() if (folder / name).is_file()]
    if not found:
        raise InputError(f"{folder}: no published filters here; expected {', '.join(FILES.values())}")
    return found


def put_published(model: Any, network: str, folder: Path | None) -> list[str]:
    """Replace filters and batch norms of a model in place; the names of the convolutions that now are published ones.

    Raises
    ------
    InputError
        The folder lacks the file, or an array does not fit its layer.
    """
    from onnx import numpy_helper

    path = (folder or Path()) / FILES[network]
    if not path.is_file():
        raise InputError(f"{path}: no such file; give --weights the folder of the published filters")
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    norms = {node.input[0]: node for node in model.graph.node if node.op_type == "BatchNormalization"}
    replaced = []
    with np.load(path) as arrays:
        for conv in (node for node in model.graph.node if node.op_type == "Conv"):
            name = array_of(conv.name)
            if name not in arrays.files:
                continue
            norm = norms[conv.output[0]]
            epsilon = next(entry.f for entry in norm.attribute if entry.name == "epsilon")
            bias = arrays[f"{name}_bias"]
            values = [arrays[name], np.ones_like(bias), bias, np.zeros_like(bias), np.full_like(bias, 1 - epsilon)]
            for target, array in zip((conv.input[1], *norm.input[1:]), values, strict=True):
                shape = tuple(tensors[target].dims)
                if array.size != np.prod(shape):
                    raise InputError(f"{path}: {name} {array.shape} does not fit {target} {shape}")
                new = numpy_helper.from_array(array.astype(np.float32).reshape(shape), target)
                tensors[target].CopyFrom(new)
            replaced.append(conv.name)
    if not replaced:
        raise InputError(f"{path}: holds no filter of {network}")
    return replaced


def array_of(node: str) -> str:
    """The published array of a MobileNetV1 node, "" if there is none."""
    if node == "Conv2d_0":
        return "initial_conv"
    number, _, kind = node.removeprefix("Conv2d_").partition("_")
    prefix = {"pointwise": "pw", "depthwise": "dw"}.get(kind)
    return f"{prefix}{int(number) - 1}" if prefix and number.isdigit() else ""
