"""One library for many batch sizes: the network compiled for a few of them, its buckets, as functions of one module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import tvm
from tvm import relax
from tvm.target import Target

from tvm_sparse.deploy.metadata import BatchSizes
from tvm_sparse.errors import ModelError
from tvm_sparse.network.build import Progress, lower_network
from tvm_sparse.network.imported import ImportedModel, times
from tvm_sparse.network.replace import LayerDecision
from tvm_sparse.tuning.lookup import KnownKernels


def batch_sizes(models: Sequence[ImportedModel], buckets: Sequence[int]) -> BatchSizes:
    """Which inputs of a model, imported once for each bucket, have the batch as their leading dimension.

    Raises
    ------
    ModelError
        The batch shows elsewhere, or an output has not a row for each image: then padding would be seen.
    """
    largest = models[-1]
    for kind in ("inputs", "outputs"):
        for position, spec in enumerate(getattr(largest, kind)):
            for model, bucket in zip(models, buckets, strict=True):
                shape = getattr(model, kind)[position].shape
                fixed = kind == "inputs" and shape == spec.shape
                if shape != (bucket, *spec.shape[1:]) and not fixed:
                    what = f"{model.name}: {kind[:-1]} '{spec.name}' is {times(shape)} at batch {bucket}"
                    raise ModelError(f"{what}, not a row for each image: compile it for a single batch")
    smallest = models[0]
    pairs = zip(largest.inputs, smallest.inputs, strict=True)
    return BatchSizes(tuple(buckets), tuple(high.name for high, low in pairs if high.shape != low.shape))


def lower_batches(
    models: Sequence[ImportedModel],
    sizes: BatchSizes,
    target: Target,
    mode: str,
    progress: Progress,
    known: KnownKernels | None,
) -> tuple[tvm.IRModule, list[LayerDecision]]:
    """As `lower_network` for a model, imported once for each bucket: one module with a function for each.

    The report has every layer once for each bucket. What is equal among their constants is stored once when code is
    generated: TVM compares them by content.
    """
    merged, report = tvm.IRModule(), []
    for bucket, model in zip(sizes.buckets, models, strict=True):

        def tell(stage: str, fraction: float, bucket: int = bucket) -> None:
            progress(f"{stage}, batch {bucket}", fraction)

        module, layers = lower_network(model, target, mode, tell, known)
        suffix = f"_batch_{bucket}"
        merged.update(_renamed(module, sizes.function(bucket), suffix))
        report += [
            replace(layer, batch=bucket, function=layer.function and f"{layer.function}{suffix}") for layer in layers
        ]
    return merged, report


def _renamed(module: tvm.IRModule, main: str, suffix: str) -> tvm.IRModule:
    """The module with another name for "main", and a suffix to all others."""
    variables = {}
    for var in module.get_global_vars():
        variables[var] = tvm.ir.GlobalVar(main if var.name_hint == "main" else f"{var.name_hint}{suffix}")
        relax.expr._update_type(variables[var], var.ty)
    rename = _Rename(variables)
    renamed = tvm.IRModule(attrs=module.attrs)
    for var, function in module.functions_items():
        function = rename.visit_expr(function) if isinstance(function, relax.Function) else function
        if function.attrs and "global_symbol" in function.attrs:
            function = function.with_attr("global_symbol", variables[var].name_hint)
        renamed[variables[var]] = function
    return renamed


@relax.expr_functor.mutator
class _Rename(relax.PyExprMutator):
    def __init__(self, variables: dict[tvm.ir.GlobalVar, tvm.ir.GlobalVar]) -> None:
        super().__init__()
        self._variables = variables

    def visit_global_var_(self, op: tvm.ir.GlobalVar) -> tvm.ir.GlobalVar:
        return self._variables.get(op, op)
