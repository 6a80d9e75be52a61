"""Schedule templates, best first; the fallback, which always applies, last."""

from __future__ import annotations

from tvm.target import Target

from tvm_sparse.errors import InputError
from tvm_sparse.schedules.base import Template, too_large
from tvm_sparse.schedules.cpu_vector import CpuVector
from tvm_sparse.schedules.cuda_pattern import CudaPattern
from tvm_sparse.schedules.cuda_pixel import CudaPixel
from tvm_sparse.schedules.cuda_pixel_nonzero import CudaPixelNonzero
from tvm_sparse.schedules.fallback import Fallback
from tvm_sparse.workload import ConvWorkload

TEMPLATES: tuple[Template, ...] = (CpuVector(), CudaPixel(), CudaPixelNonzero(), CudaPattern(), Fallback())
#: Outputs below which a layer is split over nonzeros too: threads on outputs alone do not fill a large GPU.
FEW_OUTPUTS = 150_000
#: Nonzeros of a row below which there is nothing worth splitting.
FEW_NONZEROS = 16


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

    A GPU layer with few outputs and rows long enough to split goes to cuda_pixel_nonzero, other GPU layers to
    cuda_pixel, a float32 layer on a CPU to cpu_vector. What they cannot run goes to the fallback.

    Raises
    ------
    InputError
        An array of the workload has more elements than an int32 can index.
    """
    few = workload.n * workload.k * workload.p * workload.q < FEW_OUTPUTS
    long = density * workload.c_per_group * workload.r * workload.s >= FEW_NONZEROS
    gpu = ("cuda_pixel_nonzero", "cuda_pixel") if few and long else ("cuda_pixel",)
    names = (*{"llvm": ("cpu_vector",), "cuda": gpu}.get(target.kind.name, ()), "fallback")
    if reason := too_large(workload):
        raise InputError(f"{workload}: no template applies: {reason}")
    return next(chosen for chosen in map(template, names) if chosen.applies(workload, target) is None)
