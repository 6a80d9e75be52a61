"""The deployable library: one file with code, weights and metadata, and a loader that needs no compiler."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvm_sparse.deploy.bound import BoundCall
    from tvm_sparse.deploy.environment import collect_env
    from tvm_sparse.deploy.library import ExportReport, export_library, make_metadata
    from tvm_sparse.deploy.loading import load
    from tvm_sparse.deploy.metadata import BatchSizes, Metadata, TensorSpec
    from tvm_sparse.deploy.parallel import DataParallel, serve
    from tvm_sparse.deploy.profiling import KernelTime, Profile, profile
    from tvm_sparse.deploy.rates import DeviceRate, Throughput, throughput
    from tvm_sparse.deploy.runtime import Network
    from tvm_sparse.deploy.timing import BenchResult, bench
    from tvm_sparse.deploy.trailer import read_metadata

_HOMES = {
    "BatchSizes": "metadata",
    "BenchResult": "timing",
    "BoundCall": "bound",
    "DataParallel": "parallel",
    "DeviceRate": "rates",
    "ExportReport": "library",
    "KernelTime": "profiling",
    "Metadata": "metadata",
    "Network": "runtime",
    "Profile": "profiling",
    "TensorSpec": "metadata",
    "Throughput": "rates",
    "bench": "timing",
    "collect_env": "environment",
    "export_library": "library",
    "load": "loading",
    "make_metadata": "library",
    "profile": "profiling",
    "read_metadata": "trailer",
    "serve": "parallel",
    "throughput": "rates",
}

__all__ = [
    "BatchSizes",
    "BenchResult",
    "BoundCall",
    "DataParallel",
    "DeviceRate",
    "ExportReport",
    "KernelTime",
    "Metadata",
    "Network",
    "Profile",
    "TensorSpec",
    "Throughput",
    "bench",
    "collect_env",
    "export_library",
    "load",
    "make_metadata",
    "profile",
    "read_metadata",
    "serve",
    "throughput",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
