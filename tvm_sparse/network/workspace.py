"""Give the memory between the kernels of one function to the network.

A function of several kernels would take it from a pool of the calling thread. A CUDA graph would go on using that
memory after the thread is gone, and together with every other graph captured by the thread.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax, s_tir, tirx

from tvm_sparse.network.imported import bindings_of, operator
from tvm_sparse.schedules.blocks import changed_block


def lift_workspaces(module: tvm.IRModule) -> tvm.IRModule:
    """Make every buffer that kernels of one function share a further output of its calls."""
    shared = {
        variable: found
        for variable, function in module.functions_items()
        if isinstance(function, tirx.PrimFunc) and (found := _shared(function))
    }
    # With other parameters a function is another type: it is added anew, under its name.
    kept = {variable: function for variable, function in module.functions_items() if variable not in shared}
    builder = relax.BlockBuilder(tvm.IRModule(kept))
    wider = {
        variable: builder.add_func(_with_parameters(module[variable], buffers), variable.name_hint)
        for variable, buffers in shared.items()
    }
    for variable, function in module.functions_items():
        if isinstance(function, relax.Function):
            builder.update_func(variable, _with_workspaces(function, wider, shared))
    return relax.transform.Normalize()(builder.get())


def _with_workspaces(caller: relax.Function, wider: dict[Any, Any], shared: dict[Any, Any]) -> relax.Function:
    bindings = []
    for var, value in bindings_of(caller):
        function = value.args[0] if str(operator(value)).startswith("relax.call_tir") else None
        if function in wider:
            bindings += _call(var, value, wider[function], shared[function])
        else:
            bindings.append(relax.VarBinding(var, value))
    body = relax.SeqExpr([relax.DataflowBlock(bindings)], caller.body.body)
    return relax.Function(caller.params, body, caller.ret_ty, attrs=caller.attrs)


def _shared(function: tirx.PrimFunc) -> list[tirx.Buffer]:
    if not isinstance(function.body, s_tir.SBlockRealize):
        return []
    return [buffer for buffer in function.body.block.alloc_buffers if buffer.scope() == "global"]


def _with_parameters(function: tirx.PrimFunc, buffers: list[tirx.Buffer]) -> tirx.PrimFunc:
    """The function with these buffers of its root block as its last parameters."""
    realize = function.body
    kept = [buffer for buffer in realize.block.alloc_buffers if not any(buffer.same_as(other) for other in buffers)]
    root = changed_block(realize.block, alloc_buffers=kept)
    body = s_tir.SBlockRealize(realize.iter_values, realize.predicate, root)
    return tirx.PrimFunc([*function.params, *buffers], body, function.ret_type, function.attrs)


def _call(var: relax.Var, call: relax.Call, function: Any, buffers: list[tirx.Buffer]) -> list[Any]:
    """The bindings of a call that also puts out its workspace, `var` bound as before."""
    several = isinstance(call.ty, relax.TupleType)
    types = list(call.ty.fields) if several else [call.ty]
    wider = [*types, *(relax.TensorType(buffer.shape, buffer.dtype) for buffer in buffers)]
    if operator(call) == "relax.call_tir":
        widened = relax.call_tir(function, call.args[1], wider)
    else:
        in_place = [*(int(index) for index in call.attrs.inplace_indices), *[-1] * len(buffers)]
        widened = relax.op.call_tir_inplace(function, call.args[1], in_place, wider)
    everything = relax.DataflowVar(f"{var.name}_and_workspace", widened.ty)
    items = [relax.TupleGetItem(everything, index) for index in range(len(types))]
    value = relax.Tuple(items) if several else items[0]
    return [relax.VarBinding(everything, widened), relax.VarBinding(var, value)]
