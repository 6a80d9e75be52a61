"""Explicit padding for convolutions whose ONNX node describes it by auto_pad or output_shape.

TVM's frontend pads with an operator of its own in front of a SAME convolution, where no template sees it, and ignores
output_shape of a transposed one.
"""

from __future__ import annotations

from typing import Any

import onnx

from tvm_sparse.errors import ModelError
from tvm_sparse.network.onnx_model import node_name

_SAME = ("SAME_UPPER", "SAME_LOWER")


def explicit_padding(model: onnx.ModelProto, label: str) -> None:
    """Replace auto_pad and output_shape of every convolution by pads and output_padding, in place.

    The shapes of the model have been inferred.

    Raises
    ------
    ModelError
        When the padding depends on an input of unknown size.
    """
    shapes = _known_shapes(model)
    for node in model.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose"):
            continue
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        mode = attributes.get("auto_pad", b"NOTSET").decode()
        if mode == "NOTSET" and "output_shape" not in attributes:
            continue
        data, weight = shapes.get(node.input[0]), shapes.get(node.input[1])
        if data is None or weight is None:
            raise ModelError(f"{label}: {mode} padding of {node.op_type} node '{node_name(node)}' needs known sizes")
        geometry = _Geometry(data[2:], weight[2:], attributes, mode)
        new = geometry.transposed() if node.op_type == "ConvTranspose" else {"pads": geometry.pads()}
        kept = [entry for entry in node.attribute if entry.name not in ("auto_pad", "output_shape", *new)]
        del node.attribute[:]
        node.attribute.extend([*kept, *(onnx.helper.make_attribute(key, value) for key, value in new.items())])


class _Geometry:
    """The spatial axes of one convolution."""

    def __init__(self, sizes: tuple[int, ...], kernel: tuple[int, ...], attributes: dict[str, Any], mode: str) -> None:
        ones = [1] * len(sizes)
        self.mode = mode
        self.sizes = sizes
        self.strides = list(attributes.get("strides", ones))
        dilations = attributes.get("dilations", ones)
        self.extents = [(k - 1) * dilation + 1 for k, dilation in zip(kernel, dilations, strict=True)]
        self.output_padding = list(attributes.get("output_padding", [0] * len(sizes)))
        self.output_shape = attributes.get("output_shape")

    def pads(self) -> list[int]:
        """SAME gives ceil(size / stride) outputs, an odd pixel at the end (SAME_UPPER) or start; VALID has none."""
        if self.mode not in _SAME:
            return [0] * (2 * len(self.sizes))
        totals = [
            max(0, (-(-size // stride) - 1) * stride + extent - size)
            for size, stride, extent in zip(self.sizes, self.strides, self.extents, strict=True)
        ]
        return self._split(totals, odd_at_end=self.mode == "SAME_UPPER")

    def transposed(self) -> dict[str, list[int]]:
        """What gives the wanted output: a given one, or size * stride for SAME."""
        wanted = self.output_shape
        if wanted is None and self.mode in _SAME:
            wanted = [size * stride for size, stride in zip(self.sizes, self.strides, strict=True)]
        if wanted is None:
            return {"pads": [0] * (2 * len(self.sizes))}
        axes = zip(self.sizes, self.strides, self.extents, self.output_padding, wanted[-len(self.sizes) :], strict=True)
        totals = [stride * (size - 1) + extra + extent - goal for size, stride, extent, extra, goal in axes]
        return {
            "pads": self._split([max(0, total) for total in totals], odd_at_end=self.mode == "SAME_UPPER"),
            "output_padding": [
                extra + max(0, -total) for extra, total in zip(self.output_padding, totals, strict=True)
            ],
        }

    @staticmethod
    def _split(totals: list[int], odd_at_end: bool) -> list[int]:
        small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
        return small + large if odd_at_end else large + small


def _known_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    shapes = {init.name: tuple(init.dims) for init in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            shapes.update((node.output[0], tuple(entry.t.dims)) for entry in node.attribute if entry.name == "value")
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if len(dims) > 2 and all(dim.dim_value > 0 for dim in dims):
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
    return shapes
