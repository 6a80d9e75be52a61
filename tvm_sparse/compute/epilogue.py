"""Activations fused behind a convolution, as tensor expressions on float32."""

from __future__ import annotations

from typing import Any

from tvm import te, tirx

from tvm_sparse.workload import Epilogue


def clip(y: Any, low: float, high: float) -> Any:
    return te.min(te.max(y, tirx.const(low, "float32")), tirx.const(high, "float32"))


def apply_epilogue(y: Any, epilogue: Epilogue) -> Any:
    """The activation of `epilogue` on the float32 expression y (bias and residual already added)."""
    if epilogue.activation == "relu":
        return te.max(y, tirx.const(0, "float32"))
    if epilogue.activation == "relu6":
        return clip(y, 0.0, 6.0)
    if epilogue.activation == "clip":
        return clip(y, *epilogue.bounds)
    if epilogue.activation == "silu":
        return y / (tirx.const(1, "float32") + te.exp(-y))
    if epilogue.activation == "hard_swish":
        return y * clip(y + tirx.const(3, "float32"), 0.0, 6.0) * tirx.const(1 / 6, "float32")
    return y
