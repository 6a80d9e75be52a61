"""Let a kernel begin before the one in front of it has ended: CUDA's programmatic dependent launch.

A kernel of a few microseconds takes as long to begin and to end as a microsecond. Launched so, its blocks are on the GPU
already and wait, first thing, until everything in front of them is done and visible. TVM 0.27 has the launch attribute
but no pass that sets it; needless once it has one. GPUs before sm_90 cannot do this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm_sparse.cuda.archs import sm_number

PIPELINE = "tvm_sparse_dependent_launch"
_FIRST_ARCH = 90
_PARAMETERS = "tirx.kernel_launch_params"
_DEPENDENT = "tirx.use_programtic_dependent_launch"  # as TVM spells it
_LAST = "tirx.use_dyn_shared_memory"
_WAIT = """
__forceinline__ __device__ void wait_for_kernels_in_front() {
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ >= 900)
  asm volatile("griddepcontrol.launch_dependents;");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
"""


def dependent_launch_pipeline(archs: Sequence[str]) -> str:
    """The name of the pipeline for `tvm.compile(tir_pipeline=...)`; the default one where an arch cannot do this."""
    from tvm import tirx

    if any(sm_number(arch) < _FIRST_ARCH for arch in archs):
        return "default"
    tirx.register_tir_pipeline(PIPELINE, _pipeline)
    return PIPELINE


def _pipeline() -> Any:
    import tvm

    lower, finalize_host, finalize_device = tvm.tirx.get_tir_pipeline("default")
    mark = tvm.tirx.transform.prim_func_pass(_dependent, opt_level=0)
    return lower, finalize_host, lambda: tvm.transform.Sequential([mark, finalize_device()])


def _dependent(function: Any, _module: Any, _context: Any) -> Any:
    from tvm import tirx
    from tvm.backend.cuda.op import cuda_func_call

    if _PARAMETERS not in function.attrs:
        return function
    given = [str(name) for name in function.attrs[_PARAMETERS]]
    names = [*(name for name in given if name != _LAST), _DEPENDENT, *(name for name in given if name == _LAST)]
    wait = tirx.Evaluate(cuda_func_call("wait_for_kernels_in_front", source_code=_WAIT))
    return function.with_body(tirx.SeqStmt([wait, function.body])).with_attr(_PARAMETERS, names)
