"""What schedules ask of a CPU target: the width of its vectors, the number of its cores."""

from __future__ import annotations

import tvm
from tvm.target import Target, codegen


def vector_bits(target: Target) -> int:
    """Bits of a vector register; `llvm_get_vector_width` answers 512 for every x86 CPU in TVM 0.27."""
    features = {str(f) for f in codegen.llvm_get_cpu_features(target)}
    if "avx512f" in features:
        return 512
    if "avx" in features:
        return 256
    if "sse2" in features:
        return 128
    return max(int(codegen.llvm_get_vector_width(target)), 128)


def lanes_of(target: Target, dtype: str) -> int:
    """Elements of `dtype` in one vector register."""
    return max(vector_bits(target) // max(tvm.DataType(str(dtype)).bits, 8), 2)


def cores_of(target: Target) -> int:
    """Threads the runtime will start; 4 when the target does not say."""
    return max(int(target.attrs.get("num-cores", 0) or 0), 0) or 4
