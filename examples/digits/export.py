"""Writes the trained digits network as ONNX, straight from its state dict."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from examples.onnx_graph import OnnxGraph, Tensor


def to_onnx(state: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """Build the network of train.py with input ("N", 1, 8, 8) and output "logits" ("N", 10).

    Parameters
    ----------
    state : mapping
        Float32 arrays under the names torch gives them: conv1.weight, bn1.running_mean, fc.bias, …
    """
    graph = OnnxGraph("digits", ("N", 1, 8, 8))
    x = graph.max_pool("pool", _block(graph, 2, _block(graph, 1, graph.input, state), state), 2, 2)
    x = graph.global_average_pool("avgpool", _block(graph, 3, x, state))
    x = graph.flatten("flatten", x, x.channels)
    return graph.model(graph.linear("fc", x, state["fc.weight"], state["fc.bias"]))


def _block(graph: OnnxGraph, number: int, x: Tensor, state: Mapping[str, np.ndarray]) -> Tensor:
    x = graph.conv(f"conv{number}", x, state[f"conv{number}.weight"], padding=1)
    gamma, beta, mean, variance = (
        state[f"bn{number}.{key}"] for key in ("weight", "bias", "running_mean", "running_var")
    )
    x = graph.batch_norm(f"bn{number}", x, gamma=gamma, beta=beta, mean=mean, variance=variance)
    return graph.relu(f"relu{number}", x)
