"""The order of a network's calls, where kernels may run beside those in front of them."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from tvm_sparse.network.imported import bindings_of, operator, variables_in

_Binding = tuple[relax.Var, Any]


def as_neighbours(module: tvm.IRModule) -> tvm.IRModule:
    """Put each call in front of the first one that depends on another, of the last ones that it does not depend on.

    So the layer beside a residual block's three others stands behind the first of them. Before memory is planned: then
    its output is not given memory that the first one may still use.
    """
    builder = relax.BlockBuilder(module)
    for variable, function in module.functions_items():
        if isinstance(function, relax.Function):
            ordered = [relax.VarBinding(var, value) for var, value in _ordered(bindings_of(function))]
            body = relax.SeqExpr([relax.DataflowBlock(ordered)], function.body.body)
            builder.update_func(variable, relax.Function(function.params, body, function.ret_ty, attrs=function.attrs))
    return relax.transform.Normalize()(builder.get())


def _ordered(bindings: list[_Binding]) -> list[_Binding]:
    ordered: list[_Binding] = []
    for binding in bindings:
        first, views = len(ordered), {binding[0]}
        if operator(binding[1]) == "relax.call_tir":
            first, views = _independent_of(binding, ordered)
        at = _first_dependent(ordered, first)
        stays = [other for other in ordered[at:] if other[0] not in views]
        ordered = [*ordered[:at], *(other for other in ordered[at:] if other[0] in views), binding, *stays]
    return ordered


def _independent_of(binding: _Binding, ordered: list[_Binding]) -> tuple[int, set[relax.Var]]:
    """Where the last calls begin that a call does not depend on, and which of the views among them it reads."""
    first, views = len(ordered), set()
    used = set(variables_in(binding[1]))
    for index in reversed(range(len(ordered))):
        var, value = ordered[index]
        if _is_view(value):
            if var in used:
                views.add(var)
                used |= set(variables_in(value))
            continue
        # What writes in place may be in memory that others read before.
        if var in used or operator(value) != "relax.call_tir":
            break
        first = index
    return first, views


def _first_dependent(ordered: list[_Binding], first: int) -> int:
    """The place of the first call from there on that depends on another one from there on."""
    made: set[relax.Var] = set()
    for index, (var, value) in enumerate(ordered[first:], first):
        depends = any(used in made for used in variables_in(value))
        if depends and not _is_view(value):
            return index
        if depends or not _is_view(value):
            made.add(var)
    return len(ordered)


def _is_view(value: Any) -> bool:
    return not isinstance(value, relax.Call) or operator(value) == "relax.reshape"
