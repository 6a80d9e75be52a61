"""Layers with seeded, pruned weights, scaled so that activations stay O(1) at any depth and sparsity."""

from __future__ import annotations

import zlib

import numpy as np

from examples.onnx_graph import OnnxGraph, Tensor
from tvm_sparse.prune import magnitude_mask

_SHORT_ROW = 4  # rows below this keep their mean: centred, they would be near-copies of one edge filter


class SeededGraph(OnnxGraph):
    """An ONNX graph that draws its own weights; each layer's draw depends on the seed and the layer's name alone.

    Parameters
    ----------
    name : str
        Name of the graph.
    input_shape : tuple
        (n, c, h, w).
    sparsity : float
        Share of zeros in the filter of every convolution but the first.
    seed : int
        Seed of all weights.
    linear_sparsity : float
        Share of zeros in the weight of every linear layer.
    """

    def __init__(
        self,
        name: str,
        input_shape: tuple[int, int, int, int],
        *,
        sparsity: float,
        seed: int,
        linear_sparsity: float = 0.0,
    ) -> None:
        super().__init__(name, input_shape)
        self._sparsity = sparsity
        self._linear_sparsity = linear_sparsity
        self._seed = seed

    def seeded_conv(
        self,
        name: str,
        x: Tensor,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        bias: bool = False,
    ) -> Tensor:
        """Convolve with a He-normal filter, pruned by magnitude unless x is the network's input."""
        draw = self._generator(name)
        weight = draw.standard_normal((out_channels, x.channels // groups, kernel, kernel), dtype=np.float32)
        if x != self.input:
            kept = magnitude_mask(weight, self._sparsity, "unstructured")
            weight = _centred(weight * kept, kept)
        values = _small(draw, out_channels) if bias else None
        filters = _he_scaled(weight, gain=1 if x == self.input else 2)
        return self.conv(name, x, filters, values, stride=stride, padding=padding, groups=groups)

    def seeded_batch_norm(self, name: str, x: Tensor, *, gain: float = 1.0) -> Tensor:
        """Normalise with statistics near (0, 1); gain scales gamma (below 1 for the last one of a residual block)."""
        draw = self._generator(name)
        variance = draw.uniform(0.5, 1.5, x.channels)
        gamma = gain * np.sqrt(variance) * draw.uniform(0.9, 1.1, x.channels)
        beta, mean = _small(draw, x.channels), _small(draw, x.channels)
        return self.batch_norm(name, x, gamma=gamma, beta=beta, mean=mean, variance=variance)

    def seeded_linear(self, name: str, x: Tensor, out_features: int) -> Tensor:
        """Apply a He-normal linear layer, pruned by magnitude to `linear_sparsity`."""
        draw = self._generator(name)
        weight = draw.standard_normal((out_features, x.channels), dtype=np.float32)
        if self._linear_sparsity:
            weight *= magnitude_mask(weight, self._linear_sparsity)
        return self.linear(name, x, _he_scaled(weight, gain=2), _small(draw, out_features))

    def _generator(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self._seed, zlib.crc32(name.encode())])


def _centred(weight: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Make the kept values of each longer row sum to zero.

    Otherwise the mean of the rectified activations grows over the image's share of them, layer by layer, and the
    logits of a deep network hardly depend on its input: a check on such logits would miss most faults.
    """
    count = kept.sum(axis=(1, 2, 3), keepdims=True)
    mean = weight.sum(axis=(1, 2, 3), keepdims=True) / np.maximum(count, 1)
    return np.where(kept & (count >= _SHORT_ROW), weight - mean, weight)


def _he_scaled(weight: np.ndarray, gain: float) -> np.ndarray:
    """Scale weight (oc, ...) in place to the variance gain / fan-in of He et al. 2015, zeros counted."""
    fan_in = weight[0].size
    mean_square = np.mean(np.square(weight))
    if mean_square > 0:  # a small filter may be pruned to nothing
        weight *= np.float32(np.sqrt(gain / (fan_in * mean_square)))
    return weight


def _small(draw: np.random.Generator, count: int) -> np.ndarray:
    return draw.normal(0, 0.1, count)
