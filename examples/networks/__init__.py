"""Well-known networks with seeded, pruned weights, written as ONNX without any training framework."""

from __future__ import annotations

import onnx

from examples.networks import alexnet, googlenet, mobilenet, resnet, vgg
from examples.networks.seeded import SeededGraph
from tvm_sparse.errors import InputError

_NETWORKS = {
    "resnet50": (resnet.resnet50, 224),
    "alexnet": (alexnet.alexnet, 227),
    "googlenet": (googlenet.googlenet, 224),
    "vgg16": (vgg.vgg16, 224),
    "mobilenetv1": (mobilenet.mobilenetv1, 224),
}
NAMES = tuple(_NETWORKS)


def build(
    name: str, *, batch: int = 1, sparsity: float = 0.9, seed: int = 0, linear_sparsity: float = 0.0
) -> onnx.ModelProto:
    """Build a network with input (batch, 3, h, w) and output "logits" (batch, 1000).

    Every convolution but the first is pruned; linear layers stay dense unless `linear_sparsity` says otherwise. The
    same arguments give the same bytes with the same numpy.

    Parameters
    ----------
    name : str
        One of NAMES.
    batch : int
        Batch size, at least 1.
    sparsity : float
        Share of zeros in each pruned filter, in [0, 1).
    seed : int
        Seed of all weights, at least 0.
    linear_sparsity : float
        Share of zeros in the weight of every linear layer, in [0, 1).

    Raises
    ------
    InputError
        An argument is outside its range.
    """
    if name not in _NETWORKS:
        raise InputError(f"no network is called {name!r}; choose one of {', '.join(NAMES)}")
    if batch < 1:
        raise InputError(f"the batch must be at least 1, not {batch}")
    for share in (sparsity, linear_sparsity):
        if not 0 <= share < 1:
            raise InputError(f"the sparsity must lie in [0, 1), not {share}")
    if seed < 0:
        raise InputError(f"the seed must be at least 0, not {seed}")
    layers, image = _NETWORKS[name]
    shape = (batch, 3, image, image)
    graph = SeededGraph(name, shape, sparsity=sparsity, seed=seed, linear_sparsity=linear_sparsity)
    return graph.model(layers(graph))
