"""The layers that are measured: every distinct convolution of the example networks, by a short name.

They stand in layers.json, so that a GPU machine needs neither onnx nor the time to build the networks:

    python -m benchmarks.gpu_layers layers --write
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from tvm_sparse.errors import InputError
from tvm_sparse.workload import ConvWorkload

FILE = Path(__file__).with_name("layers.json")
#: The layers whose figures are quoted; the others are measured as well.
REFERENCE = (
    "r50_56_3",
    "r50_28_3",
    "r50_14_3",
    "r50_7_3",
    "r50_56_1e",
    "r50_56_1r",
    "r50_28_1r",
    "r50_14_1e",
    "r50_14_1r",
    "r50_7_1r",
    "alex3",
    "goog3a3",
    "goog4e3",
)


@dataclass(frozen=True)
class Layer:
    """A convolution without its batch; `nodes` are the places it stands at, as "network:node"."""

    name: str
    c: int
    h: int
    w: int
    k: int
    r: int
    s: int
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    groups: int
    nodes: tuple[str, ...]

    def workload(self, batch: int, dtype: str = "float32") -> ConvWorkload:
        """The bare convolution; not flattened."""
        return ConvWorkload(
            batch, self.c, self.h, self.w, self.k, self.r, self.s, self.stride, self.padding, (1, 1), self.groups, dtype
        )

    @property
    def network(self) -> str:
        return self.nodes[0].partition(":")[0]


@cache
def layers() -> dict[str, Layer]:
    """All layers by name, from layers.json."""
    found = {}
    for row in json.loads(FILE.read_text()):
        for name in ("stride", "padding", "nodes"):
            row[name] = tuple(row[name])
        found[row["name"]] = Layer(**row)
    return found


def layer_of(node: str) -> Layer:
    """The layer that stands at "network:node".

    Raises
    ------
    InputError
        None does.
    """
    for layer in layers().values():
        if node in layer.nodes:
            return layer
    raise InputError(f"no layer of {FILE.name} stands at {node}")


def derive(networks: tuple[str, ...] = ("resnet50", "googlenet", "alexnet", "vgg16", "mobilenetv1")) -> list[Layer]:
    """Walk the graphs of the example networks; of MobileNet, whose other layers stay dense, the pointwise ones."""
    found: dict[ConvWorkload, Layer] = {}
    names: set[str] = set()
    for network in networks:
        for node, workload in _convolutions(network):
            place = f"{network}:{node}"
            if network == "mobilenetv1" and not workload.pointwise:
                continue
            if workload in found:
                known = found[workload]
                found[workload] = replace(known, nodes=(*known.nodes, place))
                continue
            short = _SHORT[network](node, workload)
            name = short if short not in names else f"{short}_{workload.k}"
            if name in names:
                raise InputError(f"{place}: a second layer would be called {name}")
            names.add(name)
            w = workload
            found[workload] = Layer(name, w.c, w.h, w.w, w.k, w.r, w.s, w.stride, w.padding, w.groups, (place,))
    return list(found.values())


def write(found: list[Layer]) -> str:
    """The text of layers.json: one layer a line."""
    return "[\n" + ",\n".join(json.dumps(asdict(layer)) for layer in found) + "\n]\n"


def _convolutions(network: str) -> Iterator[tuple[str, ConvWorkload]]:
    import onnx

    from examples.networks import build

    model = onnx.shape_inference.infer_shapes(build(network))
    shapes = {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in (*model.graph.input, *model.graph.value_info)
    }
    filters = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "Conv":
            continue
        options: dict[str, Any] = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        n, c, h, w = shapes[node.input[0]]
        k, _, r, s = filters[node.input[1]]
        top, left, bottom, right = options["pads"]
        stride = tuple(options["strides"])
        padding = (top, left, bottom, right)
        yield node.name, ConvWorkload(n, c, h, w, k, r, s, stride, padding, (1, 1), options["group"])


def _resnet(node: str, workload: ConvWorkload) -> str:
    kind = str(workload.r)
    if workload.r == 1 and workload.c != workload.k:
        kind += "e" if workload.k > workload.c else "r"
    stride = f"s{workload.stride[0]}" if workload.stride != (1, 1) else ""
    return f"r50_{workload.h}_{kind}{stride}"


def _googlenet(node: str, workload: ConvWorkload) -> str:
    module, _, branch = node.removeprefix("inception_").removeprefix("conv").partition("/")
    kind = {"pool_proj": "p"}.get(branch) or branch[0] + ("r" if branch.endswith("reduce") else "")
    return f"goog{module}{kind}" if node.startswith("inception") else f"goog{module}_{kind}"


#: The short name of a node, by network.
_SHORT: dict[str, Callable[[str, ConvWorkload], str]] = {
    "resnet50": _resnet,
    "googlenet": _googlenet,
    "alexnet": lambda node, workload: f"alex{node.removeprefix('conv')}",
    "vgg16": lambda node, workload: f"vgg_{workload.h}_{workload.c}",
    "mobilenetv1": lambda node, workload: "mob" + "".join(re.findall(r"\d+", node)[1:]),
}
