"""The dense frameworks that a compiled network is timed beside: the same model, in the same process.

`compare` is what a user calls; the driver benchmarks/gpu_networks takes the same road.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvm_sparse.peers.candidates import Compiling
    from tvm_sparse.peers.comparison import Comparison, PeerTime, compare

_HOMES = {"Comparison": "comparison", "Compiling": "candidates", "PeerTime": "comparison", "compare": "comparison"}
__all__ = ["Comparison", "Compiling", "PeerTime", "compare"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
