"""Simplify block bodies with the ranges of their variables, which TVM does only after scheduling."""

from __future__ import annotations

import tvm_ffi
from tvm import s_tir, sym, tirx

from tvm_sparse.schedules.blocks import changed_block


def simplify_blocks(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Simplify what every block stores; an index clamped to a range it never leaves loses the clamp.

    Integer divisions of what cannot be negative become floor divisions, which cancel when a loop is split.
    """

    def on_block(block: s_tir.SBlock) -> s_tir.SBlock:
        if not isinstance(block.body, tirx.BufferStore) or block.match_buffers:
            return block
        analyzer = sym.Analyzer()
        for var in block.iter_vars:
            analyzer.bind(var.var, var.dom)

        def on_div(div: tirx.Div) -> tirx.Expr:
            if not str(div.ty.dtype).startswith("int"):
                return div
            signed = analyzer.const_int_bound(div.a).min_value < 0 or analyzer.const_int_bound(div.b).min_value < 1
            return div if signed else tirx.FloorDiv(div.a, div.b)

        value = tvm_ffi.structural_map(analyzer.simplify(block.body.value), (tirx.Div, on_div), order="post")
        body = tirx.BufferStore(block.body.buffer, value, block.body.indices)
        return changed_block(block, body=body)

    return tvm_ffi.structural_map(func, (s_tir.SBlock, on_block), order="post")
