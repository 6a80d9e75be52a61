"""Put the chosen kernels into the Relax function, in place of the convolutions and what was fused behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import tvm
from tvm import relax
from tvm.target import Target

from tvm_sparse.errors import InputError
from tvm_sparse.network.decide import Decision
from tvm_sparse.network.imported import static_shape
from tvm_sparse.network.match import ConvLayer
from tvm_sparse.schedules import select, template
from tvm_sparse.schedules.base import Kernel


@dataclass(frozen=True)
class LayerDecision:
    """One line of the compile report: a convolution, how it runs and why.

    `tuned` is "exact", "nearest" or "default", see Decision, and empty where no template of ours runs the layer.
    """

    name: str
    workload: str
    sparsity: float
    decision: str
    reason: str
    tuned: str
    template: str
    knobs: dict[str, int | str]
    dense_bytes: int
    packed_bytes: int


def make_kernel(layer: ConvLayer, decision: Decision, target: Target) -> tuple[Kernel, Decision]:
    """Pack and schedule a layer that the direct template runs; a pointwise one as a single row of pixels.

    The decision comes back as it was carried out: knobs of another density or device may not fit this filter.
    """
    assert layer.workload is not None
    workload = layer.workload.flattened()
    if decision.template:
        try:
            kernel = template(decision.template).kernel(workload, layer.weight, target, decision.knobs)
            return kernel, decision
        except InputError as error:
            reason = f"{decision.reason}, which do not fit: {error}"
            decision = replace(decision, reason=reason, tuned="default", template="", knobs={})
    density = layer.density if decision.kind == "sparse" else 1.0
    chosen = select(workload, density, target)
    knobs = chosen.default(workload, density, target)
    return chosen.kernel(workload, layer.weight, target, knobs), decision


def replace_layers(
    module: tvm.IRModule,
    layers: Sequence[ConvLayer],
    decisions: Sequence[Decision],
    target: Target,
    progress: Callable[[float], None],
) -> tuple[tvm.IRModule, list[LayerDecision]]:
    """Replace every layer with a direct decision in "main"; the report has a line for every layer.

    `progress` is called with the finished fraction.
    """
    kernels: dict[relax.Var, tuple[ConvLayer, Kernel]] = {}
    report = []
    for index, (layer, decision) in enumerate(zip(layers, decisions, strict=True)):
        kernel = None
        if decision.direct:
            kernel, decision = make_kernel(layer, decision, target)
            kernels[layer.root] = (layer, kernel)
        report.append(_line(layer, decision, kernel))
        progress((index + 1) / len(layers))
    mutator = _Replacer(module, kernels)
    mutator.builder_.update_func(module.get_global_var("main"), mutator.visit_expr(module["main"]))
    module = relax.transform.DeadCodeElimination(["main"])(mutator.builder_.get())
    return module, report


def _line(layer: ConvLayer, decision: Decision, kernel: Kernel | None) -> LayerDecision:
    workload = str(layer.workload) if layer.workload is not None else f"filter {tuple(layer.weight.shape)}"
    return LayerDecision(
        name=layer.name,
        workload=workload,
        sparsity=1.0 - layer.density,
        decision=decision.kind,
        reason=decision.reason,
        tuned=decision.tuned if kernel is not None else "",
        template=kernel.template if kernel is not None else "operator",
        knobs=kernel.knobs if kernel is not None else {},
        dense_bytes=layer.weight.nbytes,
        packed_bytes=kernel.constants.nbytes if kernel is not None else layer.weight.nbytes,
    )


@relax.expr_functor.mutator
class _Replacer(relax.PyExprMutator):
    def __init__(self, module: tvm.IRModule, kernels: dict[relax.Var, tuple[ConvLayer, Kernel]]) -> None:
        super().__init__(module)
        self._kernels = kernels

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        if binding.var not in self._kernels:
            super().visit_var_binding_(binding)
            return
        layer, kernel = self._kernels[binding.var]
        self.set_var_remap(binding.var, self.builder_.emit(self._call(layer, kernel), binding.var.name))

    def _call(self, layer: ConvLayer, kernel: Kernel) -> relax.Expr:
        workload = kernel.workload
        function = self.builder_.add_func(kernel.func.without_attr("global_symbol"), "direct_conv2d")
        in_shape = (workload.n, workload.c, workload.h, workload.w)
        out_shape = (workload.n, workload.k, workload.p, workload.q)
        args = [self._shaped(self.visit_expr(layer.x), in_shape)]
        args += [relax.const(np.ascontiguousarray(array)) for array in kernel.constants.arrays]
        if layer.bias is not None:
            args.append(relax.const(layer.bias.astype(workload.dtype)))
        if layer.residual is not None:
            args.append(self._shaped(self.visit_expr(layer.residual), out_shape))
        call = relax.call_tir(function, args, out_ty=relax.TensorType(out_shape, workload.dtype))
        shape = static_shape(layer.root)
        assert shape is not None
        return self._shaped(call, shape)

    def _shaped(self, expr: relax.Expr, shape: tuple[int, ...]) -> relax.Expr:
        """A view in another shape of the same memory; nothing where the shape is the same already."""
        expr = expr if isinstance(expr, relax.Var) else self.builder_.emit(expr)
        return expr if static_shape(expr) == shape else self.builder_.emit(relax.op.reshape(expr, shape))
