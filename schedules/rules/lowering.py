"""Try a scheduled function on TVM's lowering passes, which is where a bad schedule shows."""

from __future__ import annotations

import logging

import tvm
from tvm import s_tir, tirx
from tvm.target import Target

logger = logging.getLogger(__name__)


def lowers(func: tirx.PrimFunc, target: Target) -> bool:
    """Whether `func` passes the lowering of `target`, memory verification ("did you forget to bind") included."""
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
