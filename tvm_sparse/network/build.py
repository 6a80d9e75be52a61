"""From an imported model to an executable: decide, replace, schedule what stays dense, build."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax
from tvm.target import Target

from tvm_sparse.network.capture import outputs_as_parameters, weight_names
from tvm_sparse.network.decide import decide
from tvm_sparse.network.imported import ImportedModel
from tvm_sparse.network.late_waits import late_wait_pipeline
from tvm_sparse.network.linear import lower_linear_layers
from tvm_sparse.network.order import as_neighbours
from tvm_sparse.network.plan import planned_layers
from tvm_sparse.network.precision import sum_in_float32
from tvm_sparse.network.replace import LayerDecision, replace_layers
from tvm_sparse.network.response_norm import fuse_response_norms
from tvm_sparse.network.workspace import lift_workspaces
from tvm_sparse.schedules.rules import apply_rules
from tvm_sparse.tuning.lookup import KnownKernels
from tvm_sparse.tvm_support import pass_config
from tvm_sparse.tvm_support.dependent_launch import dependent_launch_pipeline, pays_to_overlap
from tvm_sparse.tvm_support.hidden_items import without_items

#: Called with the stage's name and the finished fraction of it.
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class BuiltNetwork:
    """A Relax executable and what was decided for each convolution."""

    executable: Any
    layers: list[LayerDecision]


def lower_network(
    model: ImportedModel, target: Target, mode: str, progress: Progress, known: KnownKernels | None = None
) -> tuple[tvm.IRModule, list[LayerDecision]]:
    """A Relax module whose every PrimFunc is scheduled, and how each convolution runs.

    `mode` is "auto", "always" or "never", and `known` what was measured: see decide().
    """
    layers = planned_layers(model, mode, target, known)
    decisions = [decide(layer, mode, known, target.kind.name == "cuda") for layer in layers]
    with target:
        module, report = replace_layers(
            model.module, layers, decisions, target, lambda fraction: progress("pack and schedule", fraction)
        )
        module = lower_linear_layers(module)
        progress("schedule dense operators", 0.0)
        if target.kind.name == "cuda":
            module = fuse_response_norms(module)
        module = sum_in_float32(module)
        module = tvm.transform.Sequential(
            [
                relax.transform.LegalizeOps(),
                relax.transform.AnnotateTIROpPattern(),
                relax.transform.FoldConstant(),
            ]
        )(module)
        fuse = tvm.transform.Sequential([relax.transform.FuseOps(), relax.transform.FuseTIR()])
        module = without_items(module, fuse)
        module = tvm.transform.Sequential(
            [
                # A reshape between two kernels is a view; scheduled, it would be a kernel that copies.
                relax.transform.RewriteDataflowReshape(),
                relax.transform.DeadCodeElimination(["main"]),
            ]
        )(module)
        module = apply_rules(module, target)
    progress("schedule dense operators", 1.0)
    return module, report


def generate_code(
    module: tvm.IRModule, target: Target, progress: Progress, cuda_graph: bool = True, overlap: bool | None = None
) -> Any:
    """The Relax executable of a scheduled module; on CUDA its "main" takes the outputs behind the inputs.

    For CUDA the caller holds a tvm_support.cuda_build context; `cuda_graph` captures the kernels in one launch,
    and with `overlap` each begins before the one in front of it ends, independent ones to run beside it.
    """
    progress("generate code", 0.0)
    on_gpu = target.kind.name == "cuda"
    lowest = str(target.attrs["arch"]) if on_gpu else ""
    if overlap is None:
        overlap = pays_to_overlap(lowest, _largest_batch(module))
    overlap = on_gpu and overlap
    lowering = dependent_launch_pipeline([lowest], weight_names(module)) if overlap else "default"
    with target, pass_config({"relax.backend.use_cuda_graph": on_gpu and cuda_graph}):
        if overlap:
            module = as_neighbours(module)
        if on_gpu:
            module = lift_workspaces(outputs_as_parameters(module, target))
        planning = late_wait_pipeline(module, target) if overlap else "default_build"
        executable = tvm.compile(module, target=target, relax_pipeline=planning, tir_pipeline=lowering)
    progress("generate code", 1.0)
    return executable


def _largest_batch(module: tvm.IRModule) -> int:
    """The largest leading dimension of an input; libraries of several batches have a function for each."""
    functions = [function for function in module.functions.values() if isinstance(function, relax.Function)]
    shapes = [getattr(parameter.ty, "shape", None) or [1] for function in functions for parameter in function.params]
    return max((int(shape[0]) for shape in shapes if isinstance(shape[0], (int, tvm.tirx.IntImm))), default=1)
