"""`tvm-sparse inspect`: what a model's convolutions look like, and which could run sparse."""

from __future__ import annotations

from tvm_sparse.cli.options import Batch, JsonFlag, Model, Shapes, parse_shapes


def command(model: Model, batch: Batch = None, shape: Shapes = None, json: JsonFlag = False) -> None:
    """List every convolution: shape, nonzeros, MACs dense and sparse, row statistics, eligible and why."""
    shapes = parse_shapes(shape)
    import tvm_sparse
    from tvm_sparse.cli.output import show_records, to_json

    layers = tvm_sparse.inspect(model, batch=batch, shapes=shapes)
    if json:
        print(to_json(layers))
        return
    show_records(layers)
