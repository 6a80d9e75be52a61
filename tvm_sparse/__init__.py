"""Compiles pruned convolutional networks with direct sparse convolution on Apache TVM.

The public calls load their rooms on first use, so that ``import tvm_sparse`` costs nothing::

    network = tvm_sparse.compile("net.onnx", target="llvm")
    network.export("net.so")
    y = tvm_sparse.load("net.so")(x)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvm_sparse import errors, prune
    from tvm_sparse.api import compile, inspect, tune, verify
    from tvm_sparse.compiled import CompiledNetwork
    from tvm_sparse.deploy import bench, load, profile, serve

__version__ = "0.1.0"

__all__ = [
    "CompiledNetwork",
    "__version__",
    "bench",
    "compile",
    "errors",
    "inspect",
    "load",
    "profile",
    "prune",
    "serve",
    "tune",
    "verify",
]

_HOMES = {
    "CompiledNetwork": "tvm_sparse.compiled",
    "bench": "tvm_sparse.deploy",
    "compile": "tvm_sparse.api",
    "inspect": "tvm_sparse.api",
    "load": "tvm_sparse.deploy",
    "profile": "tvm_sparse.deploy",
    "serve": "tvm_sparse.deploy",
    "tune": "tvm_sparse.api",
    "verify": "tvm_sparse.api",
}
_ROOMS = {"errors": "tvm_sparse.errors", "prune": "tvm_sparse.prune"}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(_ROOMS[name])
    if name not in _HOMES:
        raise AttributeError(f"module 'tvm_sparse' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
