"""What a worker makes of a candidate: scheduled on the layer's real filter, and built.

A candidate's files share their name up to the suffix, here FILES; those of its layer (the filter, the inputs, what they
must give) stand in one folder for all candidates.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_sparse.errors import InputError
from tvm_sparse.tuning.records import Knobs
from tvm_sparse.workload import ConvWorkload

#: Nonzeros among all weights, and values stored for each nonzero, from which on a filter runs as a dense one.
DENSE_FROM, MOSTLY_ZEROS = 0.75, 1.5


def ready_to_build(cuda: bool) -> None:
    """Set a fresh process up for building."""
    from tvm_sparse.tvm_support import enable_cuda, import_tvm

    import_tvm()
    if cuda:
        enable_cuda()


def starts(workload: ConvWorkload, density: float, target: Any, untuned: str) -> list[Any]:
    """The points a search on a layer starts from, see LayerSpace.starts; some templates take a second for theirs."""
    from tvm_sparse.tuning.space import LayerSpace

    return LayerSpace(workload, density, target).starts(untuned)


def make(
    files: str,
    folder: str,
    workload: ConvWorkload,
    target: Any,
    archs: Sequence[str],
    template_name: str,
    knobs: Knobs,
) -> tuple[str, str]:
    """Schedule a candidate and, unless its template refuses the knobs, compile it; answers as `schedule` does."""
    kind, refusal = schedule(files, folder, workload, target, template_name, knobs)
    if kind:
        build(files, target, archs)
    return kind, refusal


def schedule(
    files: str, folder: str, workload: ConvWorkload, target: Any, template_name: str, knobs: Knobs
) -> tuple[str, str]:
    """Pack a layer's filter and schedule its convolution; the module goes to FILES.module, the filter to FILES.npz.

    Returns
    -------
    ("sparse" or "dense", ""), or ("", why the template refuses these knobs)
    """
    import tvm

    from tvm_sparse.schedules import template

    weight = np.load(f"{folder}/weight.npy")
    try:
        kernel = template(template_name).kernel(workload, weight, target, knobs)
    except InputError as error:
        return "", str(error)
    arrays: dict[str, Any] = {f"{number:02}": array for number, array in enumerate(kernel.constants.arrays)}
    np.savez(f"{files}.npz", **arrays)
    Path(f"{files}.module").write_bytes(pickle.dumps(tvm.IRModule({"main": kernel.func})))
    return _kind(kernel.constants, weight), ""


def _kind(constants: Any, weight: NDArray) -> str:
    """ "dense" if a packed filter stores zeros on purpose, in blocks of channels that share columns."""
    nonzeros = np.count_nonzero(weight)
    if nonzeros >= DENSE_FROM * weight.size:
        return "dense"
    values = getattr(constants, "values", np.empty((0, 1)))  # a filter that has become code has none
    return "dense" if values.shape[-1] > 1 and values.size >= MOSTLY_ZEROS * nonzeros else "sparse"


def build(files: str, target: Any, archs: Sequence[str]) -> None:
    """Compile FILES.module into the library FILES.so; `archs` are those of a CUDA target, else none.

    Its kernels overlap where those of a network of as many images would.
    """
    import tvm

    from tvm_sparse.tvm_support import check_cuda_modules, cuda_build
    from tvm_sparse.tvm_support.dependent_launch import constant_names, dependent_launch_pipeline, pays_to_overlap

    module = pickle.loads(Path(f"{files}.module").read_bytes())
    lowering, function = "default", module["main"]
    if archs and pays_to_overlap(archs[0], int(function.params[0].shape[0])):
        with np.load(f"{files}.npz") as arrays:
            weights = constant_names(function, len(arrays.files))
        lowering = dependent_launch_pipeline(archs, {"main": weights})
    with cuda_build(archs, target=target) if archs else nullcontext() as under_way:
        executable = tvm.compile(module, target=target, tir_pipeline=lowering)
    if under_way is not None:
        check_cuda_modules(executable, under_way)
    executable.export_library(f"{files}.so")
