"""Every work-around for TVM's own faults, one a file, each with the TVM version that makes it needless.

Importing this package does not import TVM.
"""

from __future__ import annotations

from tvm_sparse.tvm_support.cuda_builds import (
    CudaBuild,
    asynchronous_copies,
    check_cuda_modules,
    cuda_build,
    cuda_target,
    pass_config,
)
from tvm_sparse.tvm_support.cuda_compilers import CudaCompiler, cuda_compiler
from tvm_sparse.tvm_support.cuda_runtime import enable_cuda
from tvm_sparse.tvm_support.release_check import import_tvm
from tvm_sparse.tvm_support.tensor_intrin import without_tensor_intrinsics

__all__ = [
    "CudaBuild",
    "CudaCompiler",
    "asynchronous_copies",
    "check_cuda_modules",
    "cuda_build",
    "cuda_compiler",
    "cuda_target",
    "enable_cuda",
    "import_tvm",
    "pass_config",
    "without_tensor_intrinsics",
]
