"""What the convolutions of an imported model look like, and which of them could run on their nonzeros."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from tvm_sparse.formats import CSRFilter
from tvm_sparse.network.imported import ImportedModel, convolution_calls, is_constant, operator, static_shape
from tvm_sparse.network.match import match_layers


@dataclass(frozen=True)
class LayerSummary:
    """One convolution of a model.

    `padding` lists all starts, then all ends: (top, left, bottom, right). `macs_dense` counts multiply-adds with every
    weight, `macs_sparse` with the nonzeros only. Rows are output channels; `row_*` count their nonzeros. What a filter
    that is computed at run time does not have is None.
    """

    name: str
    input_shape: tuple[int, ...]
    filter_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    nnz: int | None
    sparsity: float | None
    macs_dense: int
    macs_sparse: int | None
    row_min: int | None
    row_median: float | None
    row_max: int | None
    empty_rows: int | None
    eligible: bool
    reason: str


def inspect_model(imported: ImportedModel) -> list[LayerSummary]:
    """Summarise every convolution of a model, in the order of its bindings."""
    main = imported.module["main"]
    matched = iter(match_layers(main, imported.convolutions))
    summaries = []
    for index, call in enumerate(convolution_calls(main)):
        if is_constant(call.args[1]):
            layer = next(matched)
            summaries.append(_summary(call, layer.name, layer.weight, layer.reason))
        else:
            summaries.append(_summary(call, f"conv_{index}", None, "its filter is computed at run time"))
    return summaries


def _summary(call: Any, name: str, weight: np.ndarray[Any, Any] | None, reason: str) -> LayerSummary:
    transposed = str(operator(call)).endswith("transpose")
    shapes = [static_shape(expr) or () for expr in (*call.args[:2], call)]
    # a transposed convolution uses every weight once per input pixel, any other once per output pixel
    pixels = shapes[0] if transposed else shapes[2]
    uses = prod(pixels[:1]) * prod(pixels[2:])
    stats: dict[str, Any] = dict.fromkeys(
        ("nnz", "sparsity", "macs_sparse", "row_min", "row_median", "row_max", "empty_rows")
    )
    if weight is not None:
        rows = np.swapaxes(weight, 0, 1) if transposed else weight
        packed = CSRFilter.from_dense(rows.reshape(len(rows), -1, 1, 1).astype(np.float32))
        row_stats = packed.row_stats()
        stats = {
            "nnz": packed.nnz,
            "sparsity": packed.sparsity,
            "macs_sparse": packed.nnz * uses,
            "row_min": row_stats.min,
            "row_median": row_stats.median,
            "row_max": row_stats.max,
            "empty_rows": row_stats.empty,
        }
    geometry = {key: tuple(int(v) for v in getattr(call.attrs, key)) for key in ("strides", "padding", "dilation")}
    return LayerSummary(
        name=name,
        input_shape=shapes[0],
        filter_shape=shapes[1],
        output_shape=shapes[2],
        stride=geometry["strides"],
        padding=geometry["padding"],
        dilation=geometry["dilation"],
        groups=int(call.attrs.groups),
        macs_dense=prod(shapes[1]) * uses,
        eligible=not reason,
        reason=reason or "constant filter",
        **stats,
    )
