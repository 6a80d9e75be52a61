"""Keep the items of kernels' tuples out of TVM's fusion of operators.

FuseOps of TVM 0.27 makes a function's parameter that is a tuple into parameters for the items it uses. If there are
several such tuples it takes items of one for the tuple of another, and leaves a function with free variables, at which
FuseTIR fails. Needless once it keeps several tuples apart.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

#: What calls that stand for items are named, in front of the item's number.
_ITEM = "tvm_sparse.item_"


def without_items(module: tvm.IRModule, fuse: tvm.transform.Pass) -> tvm.IRModule:
    """`fuse` applied to a module whose "main" takes no items of tuples that one kernel makes."""
    return _rewritten(_Shower, fuse(_rewritten(_Hider, module)))


def _rewritten(mutator: type[Any], module: tvm.IRModule) -> tvm.IRModule:
    rewriting = mutator(module)
    rewriting.builder_.update_func(module.get_global_var("main"), rewriting.visit_expr(module["main"]))
    return rewriting.builder_.get()


@relax.expr_functor.mutator
class _Hider(relax.PyExprMutator):
    """Puts calls that nothing is fused with in the place of items."""

    def visit_tuple_getitem_(self, item: relax.TupleGetItem) -> Any:
        item = self.visit_expr_post_order(item)
        made_by = self.lookup_binding(item.tuple_value) if isinstance(item.tuple_value, relax.Var) else None
        if not isinstance(made_by, relax.Call) or not str(made_by.op.name).startswith("relax.call_tir"):
            return item
        return relax.op.call_pure_packed(f"{_ITEM}{item.index}", item.tuple_value, ty_args=item.ty)


@relax.expr_functor.mutator
class _Shower(relax.PyExprMutator):
    """Puts the items back."""

    def visit_call_(self, call: relax.Call) -> Any:
        call = self.visit_expr_post_order(call)
        if getattr(call.op, "name", "") != "relax.call_pure_packed":
            return call
        name = str(call.args[0].global_symbol)
        return relax.TupleGetItem(call.args[1], int(name[len(_ITEM) :])) if name.startswith(_ITEM) else call
