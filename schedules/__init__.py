"""Schedule templates, best first; the fallback, which always applies, last."""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm.target import Target

from tvm_sparse.compute.pair_tiling import pair_axis
from tvm_sparse.compute.pattern_conv import reads_own_pixel
from tvm_sparse.errors import InputError
from tvm_sparse.schedules import cuda_cost
from tvm_sparse.schedules.base import Template, too_large
from tvm_sparse.schedules.cpu_vector import CpuVector
from tvm_sparse.schedules.cuda_dense import CudaDense
from tvm_sparse.schedules.cuda_jump import CudaJump
from tvm_sparse.schedules.cuda_pattern import CudaPattern
from tvm_sparse.schedules.cuda_pixel import CudaPixel
from tvm_sparse.schedules.cuda_pixel_nonzero import CudaPixelNonzero
from tvm_sparse.schedules.cuda_row import CudaRow
from tvm_sparse.schedules.cuda_tensor import CudaTensor
from tvm_sparse.schedules.fallback import Fallback
from tvm_sparse.workload import ConvWorkload

TEMPLATES: tuple[Template, ...] = (
    CpuVector(),
    CudaPixel(),
    CudaPixelNonzero(),
    CudaPattern(),
    CudaJump(),
    CudaRow(),
    CudaDense(),
    CudaTensor(),
    Fallback(),
)


#: The partial sums a CUDA template may cut a pixel into.
SPLITS: dict[str, Callable[[ConvWorkload], tuple[int, ...]]] = {
    "cuda_pixel": lambda workload: (),
    "cuda_pixel_nonzero": CudaPixelNonzero.splits,
}


#: Nonzeros that compile in some ten seconds, pixels that keep a large GPU busy with one a thread (as
#: measured with layers of ResNet-50 at batch 32), and the density above which columns are shared by all rows.
PATTERN_NONZEROS, PATTERN_PIXELS, PATTERN_DENSITY = 16_000, 6_000, 0.5
#: A small pointwise layer, whose code loads sooner than tiles are copied (as the tuning log shows of layers of
#: ResNet-50 and GoogLeNet at batch 1).
SMALL_NONZEROS, SMALL_PIXELS = 8_000, 1_024

#: Above it, a row's nonzeros with their offsets take more bytes than all of its weights.
ROW_DENSITY = 0.6


def template(name: str) -> Template:
    """The template of this name.

    Raises
    ------
    InputError
        There is none; the message lists them.
    """
    for candidate in TEMPLATES:
        if candidate.name == name:
            return candidate
    raise InputError(f"unknown template {name!r}: choose one of {', '.join(t.name for t in TEMPLATES)}")


def select(workload: ConvWorkload, density: float, target: Target) -> Template:
    """The template for a layer that was never tuned, by rule.

    A pruned GPU layer of one output pixel goes to cuda_row; one of many pixels and a small filter, or a small pointwise
    one, to cuda_pattern; one without zeros to cuda_dense; any other to the CUDA template that costs least by rule
    (cuda_cost); a float32 layer on a CPU to cpu_vector. What they cannot run goes to the fallback.

    Raises
    ------
    InputError
        An array of the workload has more elements than an int32 can index.
    """
    if reason := too_large(workload):
        raise InputError(f"{workload}: no template applies: {reason}")
    nonzeros = density * math.prod(workload.filter_shape)
    row = template("cuda_row")
    if density <= ROW_DENSITY and row.applies(workload, target) is None:
        return row
    tensor, dense = template("cuda_tensor"), template("cuda_dense")
    if density >= 1 and tensor.applies(workload, target) is None:
        return tensor
    if density >= 1 and dense.applies(workload, target) is None:
        return dense
    pattern, pixels = template("cuda_pattern"), workload.n * workload.p * workload.q
    # 16-bit pixels are staged without cp.async and, unless summed in pairs, loaded one by one.
    paired = workload.dtype == "float16" and pair_axis(workload) is not None
    loads_well = workload.dtype == "float32" or workload.pointwise or paired
    enough = nonzeros <= PATTERN_NONZEROS and pixels >= PATTERN_PIXELS and loads_well
    small = reads_own_pixel(workload) and nonzeros <= SMALL_NONZEROS and pixels <= SMALL_PIXELS
    if density <= PATTERN_DENSITY and (enough or small) and pattern.applies(workload, target) is None:
        return pattern
    names = {"llvm": ("cpu_vector",), "cuda": ("cuda_pixel", "cuda_pixel_nonzero")}.get(target.kind.name, ())
    able = [name for name in names if template(name).applies(workload, target) is None]
    if len(able) > 1:
        able.sort(key=lambda name: cuda_cost.cheapest(workload, density, target, SPLITS[name](workload))[0])
    return template(able[0] if able else "fallback")
