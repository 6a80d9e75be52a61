"""Activations fused behind a convolution, as tensor expressions on float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import te, tirx

from tvm_sparse.workload import ConvWorkload, Epilogue


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


def output_stage(
    workload: ConvWorkload, total: Callable[[Any, Any, Any, Any], Any], order: te.Tensor | None = None
) -> list[te.Tensor]:
    """[bias], [residual] and "out" (n, k, p, q), which adds them to total(n, k, p, q) and activates.

    With `order` (k,) row k is that of output channel order[k].
    """
    epilogue, dtype = workload.epilogue, workload.dtype
    bias = te.placeholder((workload.k,), dtype, name="bias") if epilogue.bias else None
    out_shape = (workload.n, workload.k, workload.p, workload.q)
    residual = te.placeholder(out_shape, dtype, name="residual") if epilogue.residual else None

    def output(i: Any, k: Any, p: Any, q: Any) -> Any:
        channel = order[k] if order is not None else k
        y = total(i, k, p, q)
        if bias is not None:
            y = y + bias[channel].astype("float32")
        if residual is not None:
            y = y + residual[i, channel, p, q].astype("float32")
        return apply_epilogue(y, epilogue).astype(dtype)

    out = te.compute(out_shape, output, name="out")
    return [*(tensor for tensor in (bias, residual) if tensor is not None), out]
