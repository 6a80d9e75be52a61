"""Put the chosen kernels into the Relax function, in place of the convolutions and what was fused behind them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import tvm
from tvm import relax
from tvm.target import Target

from tvm_sparse.errors import InputError
from tvm_sparse.network.concats import concats_in_place
from tvm_sparse.network.decide import Decision
from tvm_sparse.network.imported import operator, static_shape
from tvm_sparse.network.match import ConvLayer
from tvm_sparse.network.subsample import gathered
from tvm_sparse.schedules import select, template
from tvm_sparse.schedules.base import Kernel
from tvm_sparse.schedules.outputs import Slice, store_phases, store_slices

#: What a report says of a layer without its stride.
STORED_BY_PHASES = "; input stored by phases of the stride"


@dataclass(frozen=True)
class LayerDecision:
    """One line of the compile report: a convolution, how it runs and why.

    `tuned` is "exact", "nearest" or "default", see Decision, and empty where no template of ours runs the layer.
    `batch` is the batch size it was compiled for, in a network that serves several.
    `flop` counts the multiplications with nonzeros and their additions. `function` is the compiled one that runs the
    layer, several layers if they are equal but for their weights; empty where no template of ours does.
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
    flop: int
    function: str = ""
    batch: int | None = None


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
    return chosen.kernel(workload, layer.weight, target, density=density), decision


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
    kernels: list[tuple[ConvLayer, Kernel]] = []
    report = []
    for index, (layer, decision) in enumerate(zip(layers, decisions, strict=True)):
        kernel = None
        if decision.direct:
            kernel, decision = make_kernel(layer, decision, target)
            kernels.append((layer, kernel))
        report.append(_line(layer, decision, kernel))
        progress((index + 1) / len(layers))
    mutator = _Replacer(module, kernels)
    mutator.builder_.update_func(module.get_global_var("main"), mutator.visit_expr(module["main"]))
    report = [replace(line, function=mutator.functions.get(line.name, "")) for line in report]
    module = relax.transform.DeadCodeElimination(["main"])(mutator.builder_.get())
    return module, report


def _line(layer: ConvLayer, decision: Decision, kernel: Kernel | None) -> LayerDecision:
    workload = str(layer.workload) if layer.workload is not None else f"filter {tuple(layer.weight.shape)}"
    return LayerDecision(
        name=layer.name,
        workload=workload,
        sparsity=layer.sparsity,
        decision=decision.kind,
        reason=decision.reason + (STORED_BY_PHASES if layer.strided is not None else ""),
        tuned=decision.tuned if kernel is not None else "",
        template=kernel.template if kernel is not None else "operator",
        knobs=kernel.knobs if kernel is not None else {},
        dense_bytes=layer.in_model.weight.nbytes,
        packed_bytes=kernel.constants.nbytes if kernel is not None else layer.weight.nbytes,
        flop=_flop(layer),
    )


def _flop(layer: ConvLayer) -> int:
    shape = static_shape(layer.root)
    return 2 * int(np.count_nonzero(layer.weight)) * shape[0] * math.prod(shape[2:]) if shape is not None else 0


@relax.expr_functor.mutator
class _Replacer(relax.PyExprMutator):
    """Calls the kernels where the first variable that they compute was bound."""

    def __init__(self, module: tvm.IRModule, kernels: Sequence[tuple[ConvLayer, Kernel]]) -> None:
        super().__init__(module)
        self._kernels = {part.root: pair for pair in kernels for part in pair[0].parts}
        self._parts = concats_in_place(module["main"], self._kernels)
        self._results: dict[relax.Var, relax.Var] = {}
        #: The values of concats, as far as they are stored.
        self._concats: dict[relax.Var, relax.Var] = {}
        self.functions: dict[str, str] = {}

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        var = binding.var
        if var in self._concats:
            self._results[var] = self._shaped(self._concats[var], _shape(var))
        elif var not in self._kernels:
            super().visit_var_binding_(binding)
            return
        elif var not in self._results:
            self._call(*self._kernels[var])
        self.set_var_remap(var, self._results[var])

    def _call(self, layer: ConvLayer, kernel: Kernel) -> None:
        """Call a kernel, on slices of the tensors that it stores parts of; each of these once among its results."""
        workload = kernel.workload
        n, p, q = workload.n, workload.p, workload.q
        x = self.visit_expr(layer.x)
        if layer.every != (1, 1):
            x = self.builder_.emit(gathered(x, layer.every))
        args = [self._shaped(x, (n, workload.c, workload.h, workload.w))]
        args += [relax.const(np.ascontiguousarray(array)) for array in kernel.constants.arrays]
        if layer.bias is not None:
            args.append(relax.const(layer.bias.astype(workload.dtype)))
        if layer.residual is not None:
            args.append(self._shaped(self.visit_expr(layer.residual), (n, workload.k, p, q)))

        places = [self._parts.get(part.root) for part in layer.parts]
        owners = [part.root if place is None else place.concat for part, place in zip(layer.parts, places, strict=True)]
        # Tensors that are there already come first: call_tir_inplace takes them among the arguments.
        tensors = sorted(dict.fromkeys(owners), key=lambda owner: owner not in self._concats)
        shapes = [(n, *_shape(tensor)[1:2], *((p, q) if len(_shape(tensor)) > 2 else ())) for tensor in tensors]
        slices = [
            Slice(len(part.weight), tensors.index(owner), 0 if place is None else place.first)
            for part, place, owner in zip(layer.parts, places, owners, strict=True)
        ]
        plain = len(slices) == 1 and shapes == [(n, workload.k, p, q)]
        func = kernel.func if plain else store_slices(kernel.func, slices, shapes)
        if layer.phases != (1, 1):
            h, w = _shape(layer.root)[2:]
            func = store_phases(kernel.func, (n, workload.k, h, w), layer.phases)
            shapes = [tuple(int(extent) for extent in func.params[-1].shape)]
        function = self.builder_.add_func(func.without_attr("global_symbol"), "direct_conv2d")
        self.functions[layer.name] = function.name_hint
        types = [relax.TensorType(shape, workload.dtype) for shape in shapes]
        there = [tensor for tensor in tensors if tensor in self._concats]
        if there:
            indices = [len(args) + index if index < len(there) else -1 for index in range(len(tensors))]
            args += [self._shaped(self._concats[tensor], shapes[tensors.index(tensor)]) for tensor in there]
            call = relax.op.base.call_tir_inplace(function, args, indices, types)
        else:
            call = relax.call_tir(function, args, out_ty=types if len(types) > 1 else types[0])
        stored = self.builder_.emit(call, layer.root.name)
        for index, tensor in enumerate(tensors):
            result = self.builder_.emit(relax.TupleGetItem(stored, index)) if len(tensors) > 1 else stored
            if tensor in self._kernels:
                self._results[tensor] = self._shaped(result, _shape(tensor))
            else:
                self._concats[tensor] = result
        for part, place in zip(layer.parts, places, strict=True):
            if place is not None:
                self._results[part.root] = self._concats[place.concat]

    def _shaped(self, expr: relax.Expr, shape: tuple[int, ...]) -> relax.Var:
        """A view in another shape of the same memory; nothing where the shape is the same already.

        Of a view it is one of what that is of: TVM 0.27 fuses a view of a view into a kernel that copies.
        """
        var = expr if isinstance(expr, relax.Var) else self.builder_.emit(expr)
        value = self.builder_.lookup_binding(var)
        if isinstance(value, relax.Call) and operator(value) == "relax.reshape":
            var = value.args[0]
        return var if static_shape(var) == shape else self.builder_.emit(relax.op.reshape(var, shape))


def _shape(var: relax.Var) -> tuple[int, ...]:
    shape = static_shape(var)
    assert shape is not None
    return shape
