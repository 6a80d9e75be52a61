"""The layers that a network is compiled as, and tuned as: those of the model, merged and rewritten."""

from __future__ import annotations

from tvm.target import Target

from tvm_sparse.network.imported import ImportedModel
from tvm_sparse.network.match import ConvLayer, match_layers, template_dtypes
from tvm_sparse.network.phases import store_by_phases
from tvm_sparse.network.siblings import merge_siblings
from tvm_sparse.network.subsample import subsample_inputs
from tvm_sparse.tuning.lookup import KnownKernels


def planned_layers(
    model: ImportedModel, mode: str, target: Target, known: KnownKernels | None = None, everywhere: bool = False
) -> list[ConvLayer]:
    """The layers as they are run, with siblings merged and strides taken out; `mode` and `known` as for decide().

    Strides are taken out where that pays, or `everywhere`.
    """
    function = model.module["main"]
    found = match_layers(function, model.convolutions, template_dtypes(target))
    layers = subsample_inputs(merge_siblings(found, mode, target, known), target)
    return store_by_phases(function, layers, mode, target, known, everywhere)
