"""The dense frameworks that a compiled network is timed beside: the same model, in the same process.

`compare` is what a user calls; the driver benchmarks/gpu_networks takes the same road.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvm_sparse.peers.compare import Comparison, PeerTime, compare

_HOME = "tvm_sparse.peers.compare"
__all__ = ["Comparison", "PeerTime", "compare"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME), name)
    globals()[name] = value
    return value
