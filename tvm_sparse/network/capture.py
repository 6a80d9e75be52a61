"""Bring a scheduled CUDA network into the form of which TVM captures all but the edges in one CUDA graph.

RewriteCUDAGraph captures what works on memory that the network owns; a call that touches an input or an output ends a
capture. So the first calls read the inputs and the last ones write the outputs, one launch each, and where a network
reads or writes them elsewhere, a copy does. Two more things would go wrong by themselves:

- An output that is a view of the network's memory would be overwritten by the next call.
- An output allocated by TVM comes from a pool that knows no streams and that all networks of a process share: memory
  that one stream still reads would be given to another.

So outputs are parameters, each written by a kernel: `main(*inputs, *outputs)`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import tvm
from tvm import relax, s_tir, te, tirx
from tvm.target import Target

from tvm_sparse.network.imported import bindings_of, is_constant, operator, static_shape, variables_in
from tvm_sparse.schedules.rules import rules_for, schedule_func

_VIEW = "relax.reshape"


def outputs_as_parameters(module: tvm.IRModule, target: Target) -> tvm.IRModule:
    """Every function of a network, as `main(*inputs)`, as a `main(*inputs, *outputs)` that suits one capture.

    All its operators are scheduled functions or views.
    """
    builder = relax.BlockBuilder(module)
    for variable, function in module.functions_items():
        if isinstance(function, relax.Function):
            builder.update_func(variable, _Edges(module, function, target, builder).function())
    return relax.transform.Normalize()(builder.get())


def launches(function: tirx.PrimFunc) -> int:
    """How many kernels a scheduled function starts: its blocks at the outermost level."""
    body = function.body.block.body if isinstance(function.body, s_tir.SBlockRealize) else function.body
    return len(body.seq) if isinstance(body, tirx.SeqStmt) else 1


def weight_names(module: tvm.IRModule) -> dict[str, set[str]]:
    """By the name of a scheduled function, those of its parameters that are constants wherever it is called."""
    constant: dict[str, set[str]] = {}
    for call in tir_calls(module):
        names = [parameter.name for parameter in module[call.args[0]].params]
        given = zip(names, call.args[1].fields, strict=False)  # outputs stand behind the arguments
        own = {name for name, argument in given if is_constant(argument) and names.count(name) == 1}
        name = call.args[0].name_hint
        constant[name] = constant.get(name, own) & own
    return constant


def tir_calls(module: tvm.IRModule) -> Iterator[relax.Call]:
    """The calls of scheduled functions, in place or not, in all functions of a module."""
    for caller in module.functions.values():
        for _, value in bindings_of(caller) if isinstance(caller, relax.Function) else ():
            if str(operator(value)).startswith("relax.call_tir"):
                yield value


class _Edges:
    """The bindings of a function, those before the capture first and those behind it last."""

    def __init__(
        self, module: tvm.IRModule, function: relax.Function, target: Target, builder: relax.BlockBuilder
    ) -> None:
        self._module, self._target, self._builder = module, target, builder
        self._main = function
        self._bindings = bindings_of(function)
        self._values = dict(self._bindings)
        body = self._main.body.body
        if isinstance(body, relax.Var) and isinstance(self._values.get(body), relax.Tuple):
            self._bindings = [binding for binding in self._bindings if not binding[0].same_as(body)]
            body = self._values[body]
        self._results = list(body.fields) if isinstance(body, relax.Tuple) else [body]
        self._readers: dict[relax.Var, list[relax.Var]] = defaultdict(list)  # of a tensor or of a view of it
        for var, value in self._bindings:
            if operator(value) != _VIEW:
                for base in set(map(self._base, variables_in(value))):
                    self._readers[base].append(var)

    def function(self) -> relax.Function:
        """The function with its outputs as parameters."""
        given, copies, early = self._inputs()
        params = set(given) & set(self._main.params)
        outputs, last, late = self._outputs()
        front = [binding for binding in self._bindings if binding[0] in early or self._base(binding[0]) in params]
        skipped = {var for var, _ in front} | {var for var, _ in self._bindings if self._base(var) in late}
        middle = [binding for binding in self._bindings if binding[0] not in skipped]
        front = [binding for binding in front if self._base(binding[0]) not in late]
        ordered = [relax.VarBinding(var, value) for var, value in [*copies, *front, *middle, *last]]
        written = [var for var, _ in last if not isinstance(var, relax.DataflowVar)]
        function = relax.Function(
            [*given, *outputs],
            relax.SeqExpr([relax.DataflowBlock(ordered)], relax.Tuple(written)),
            relax.TupleType([var.ty for var in written]),
            attrs=self._main.attrs,
        )
        return function.without_attr("num_input")  # parameters beyond that number would count as fixed

    def _inputs(self) -> tuple[list[relax.Var], list[Any], set[relax.Var]]:
        """The parameters for the inputs, the bindings that copy some, and the calls that read the others."""
        params, first = set(self._main.params), set()
        for var, value in self._bindings:
            used = set(map(self._base, variables_in(value)))
            if operator(value) != _VIEW:
                if not used or not used <= params:
                    break
                first.add(var)
        given, copies, early = [], [], set()
        for param in self._main.params:
            readers = self._readers[param]
            if not readers or (set(readers) <= first and sum(map(self._launches, readers)) == 1):
                given.append(param)
                early.update(readers)
                continue
            given.append(relax.Var(param.name, param.ty))
            copies.append((param, self._copy(given[-1])))
        return given, copies, early

    def _outputs(self) -> tuple[list[relax.Var], list[Any], set[relax.Var]]:
        """The parameters for the outputs, the bindings that write them, and the variables this makes needless."""
        outputs, last, late = [], [], set()
        for index, result in enumerate(self._results):
            output = relax.Var(f"output_{index}", result.ty)
            outputs.append(output)
            if not self._writes_alone(result):
                last.append((relax.Var(f"written_{index}", result.ty), self._copy(result, output)))
                continue
            base = self._base(result)
            late.add(base)
            call, place = self._values[base], output
            if static_shape(base) != static_shape(output):
                place = relax.DataflowVar(f"place_{index}", base.ty)
                last.append((place, relax.op.reshape(output, static_shape(base))))
            function, args = call.args[0], list(call.args[1].fields)
            written = relax.op.call_tir_inplace(function, [*args, place], len(args), base.ty)
            last.append((relax.Var(f"written_{index}", base.ty), written))
        return outputs, last, late

    def _writes_alone(self, result: Any) -> bool:
        """Whether a result is the one value of one kernel, and nobody else wants it."""
        base = self._base(result)
        if base not in self._values or operator(self._values[base]) != "relax.call_tir":
            return False
        if isinstance(base.ty, relax.TupleType):
            return False
        wanted = sum(base.same_as(self._base(other)) for other in self._results)
        return wanted == 1 and not self._readers[base] and self._launches(base) == 1

    def _base(self, expr: Any) -> Any:
        """The tensor that a chain of views begins at."""
        while isinstance(expr, relax.Var) and operator(self._values.get(expr)) == _VIEW:
            expr = self._values[expr].args[0]
        return expr

    def _launches(self, var: relax.Var) -> int:
        value = self._values[var]
        if operator(value) != "relax.call_tir":
            return 2  # unknown: a copy serves better
        return launches(self._module[value.args[0]])

    def _copy(self, source: Any, output: relax.Var | None = None) -> relax.Call:
        shape = static_shape(source)
        given = te.placeholder(shape, source.ty.dtype, "given")
        copied = te.compute(shape, lambda *at: given(*at), name="copied")
        function = te.create_prim_func([given, copied]).without_attr("global_symbol")
        function = schedule_func(function, self._target, rules_for(self._target), "a copy")
        variable = self._builder.add_func(function, "copy_input" if output is None else "copy_output")
        if output is None:
            return relax.call_tir(variable, [source], source.ty)
        return relax.op.call_tir_inplace(variable, [source, output], 1, output.ty)
