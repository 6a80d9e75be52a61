"""Every work-around for TVM's own faults, one a file, each with the TVM version that makes it needless.

Importing this package does not import TVM.
"""

from __future__ import annotations

from .cuda_builds import CudaBuild, check_cuda_modules, cuda_build, cuda_target
from .cuda_compilers import CudaCompiler, cuda_compiler
from .cuda_runtime import enable_cuda
from .release_check import import_tvm

__all__ = [
    "CudaBuild",
    "CudaCompiler",
    "check_cuda_modules",
    "cuda_build",
    "cuda_compiler",
    "cuda_target",
    "enable_cuda",
    "import_tvm",
]
