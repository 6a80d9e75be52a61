"""Compile an operator as a network of its own, in any process."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Any

from benchmarks.gpu_operators.cases import OPERATORS, relax_module


def build(name: str, batch: int, arch: str, library: str) -> tuple[int, str]:
    """Compile an operator for a GPU's arch, or "llvm", into a library file.

    Returns
    -------
    int, str
        The number of its kernels, and the template and knobs of a convolution that one of ours runs.
    """
    from tvm_sparse.tvm_support import import_tvm

    import_tvm()
    import tvm

    from tvm_sparse.network.build import lower_network
    from tvm_sparse.network.cleanup import clean_up
    from tvm_sparse.network.imported import CONVOLUTIONS, ConvInfo, ImportedModel, bindings_of, operator
    from tvm_sparse.targets import make_target
    from tvm_sparse.tvm_support import check_cuda_modules, cuda_build

    chosen = next(each for each in OPERATORS if each.name == name)
    module = clean_up(relax_module(chosen, batch))
    found = [call for _, call in bindings_of(module["main"]) if operator(call) in CONVOLUTIONS]
    convolutions = tuple(ConvInfo(name, operator(call) or "", chosen.weights["w"]) for call in found)
    model = ImportedModel(name, module, (), (), convolutions, None)
    target = make_target("llvm") if arch == "llvm" else make_target("cuda", arch=arch)
    with nullcontext() if arch == "llvm" else cuda_build(arch, target=target) as under_way:
        lowered, layers = lower_network(model, target, "never", lambda stage, fraction: None)
        with target:
            executable = tvm.compile(lowered, target=target, relax_pipeline="default_build")
        if under_way is not None:
            check_cuda_modules(executable, under_way)
    executable.export_library(library)
    source = _cuda_source(executable.mod)
    kernels = [line for line in source.splitlines() if "__global__" in line and line.endswith("{")]
    notes = [f"{layer.template} {json.dumps(layer.knobs)}" for layer in layers if layer.template != "operator"]
    return len(kernels), " ".join(notes).replace('"', "")


def _cuda_source(module: Any) -> str:
    own = str(module.inspect_source()) if module.kind == "cuda" else ""
    return own + "".join(_cuda_source(imported) for imported in module.imports)
