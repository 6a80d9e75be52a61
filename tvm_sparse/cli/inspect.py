"""`tvm-sparse inspect`: what a model's convolutions look like, and which could run sparse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm_sparse.cli.options import Batch, JsonFlag, Model, Shapes, parse_shapes

if TYPE_CHECKING:
    from tvm_sparse.api import LayerSummary


def command(model: Model, batch: Batch = None, shape: Shapes = None, json: JsonFlag = False) -> None:
    """List every convolution: shape, nonzeros, MACs dense and sparse, row statistics, eligible and why."""
    shapes = parse_shapes(shape)
    import tvm_sparse
    from tvm_sparse.cli.output import show_table, to_json

    layers = tvm_sparse.inspect(model, batch=batch, shapes=shapes)
    if json:
        print(to_json(layers))
        return
    show_table([_row(layer) for layer in layers])


def _row(layer: LayerSummary) -> dict[str, Any]:
    from tvm_sparse.cli.output import cell

    return {
        "name": layer.name,
        "filter": layer.filter_shape,
        "output": layer.output_shape,
        "stride": layer.stride,
        "padding": layer.padding,
        "dilation": layer.dilation,
        "groups": layer.groups,
        "nnz": layer.nnz,
        "sparsity": layer.sparsity,
        "MACs dense": layer.macs_dense,
        "MACs sparse": layer.macs_sparse,
        "row min/median/max": "/".join(map(cell, (layer.row_min, layer.row_median, layer.row_max))),
        "empty rows": layer.empty_rows,
        "eligible": layer.eligible,
        "why": layer.reason,
    }
