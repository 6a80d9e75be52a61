"""Try a scheduled function on TVM's lowering passes, which is where a bad schedule shows."""

from __future__ import annotations

import logging

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.target import Target

logger = logging.getLogger(__name__)


def lowers(func: tirx.PrimFunc, target: Target) -> bool:
    """Whether `func` passes the lowering of `target`, and on a GPU touches its memory inside threads only.

    TVM 0.27 compiles an unbound function for CUDA without a word; it then runs on the host, on device pointers.
    """
    if target.kind.name == "cuda" and not is_bound(func):
        logger.debug("memory is written outside threads")
        return False
    named = func.with_attr("global_symbol", "main")
    host = target if target.host is not None else target.with_host("llvm" if target.kind.name == "cuda" else target)
    try:
        with host:
            mod = tirx.transform.BindTarget(host)(tvm.IRModule({"main": named}))
            s_tir.pipeline.default_s_tir_pipeline()[0](mod)
    except Exception as error:  # TVM raises many classes here; every one means the same to the caller
        logger.debug("does not lower: %s", error)
        return False
    return True


def is_bound(func: tirx.PrimFunc) -> bool:
    """Whether every store is inside a loop bound to GPU threads."""
    outside: list[tirx.BufferStore] = []

    def on_loop(loop: tirx.For) -> tvm_ffi.WalkResult | None:
        return tvm_ffi.WalkResult.SKIP if loop.kind == tirx.ForKind.THREAD_BINDING else None

    tvm_ffi.structural_walk(func.body, [(tirx.For, on_loop), (tirx.BufferStore, outside.append)], order="pre")
    return not outside
