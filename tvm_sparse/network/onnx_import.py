"""ONNX files as Relax modules."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
from onnx import numpy_helper

from tvm_sparse.deploy.metadata import TensorSpec
from tvm_sparse.errors import ModelError, TvmSparseError
from tvm_sparse.network.cleanup import clean_up
from tvm_sparse.network.imported import ImportedModel, finite_filters, one_line, output_specs, static_shape
from tvm_sparse.network.layer_names import NamedFilter, name_convolutions
from tvm_sparse.network.linear import filter_of, is_pruned
from tvm_sparse.network.onnx_convert import convert_model, slim_model
from tvm_sparse.network.onnx_model import graph_inputs, inferred, load_model, pin_inputs, refuse_bad_weights
from tvm_sparse.network.onnx_padding import explicit_padding
from tvm_sparse.network.references import OnnxRuntimeReference

_CONV = ("Conv", "ConvTranspose")
_LINEAR = ("Gemm", "MatMul")
_NAMED = (*_CONV, *_LINEAR)
# what onnxslim fuses into a convolution, whose output then carries the name of the last of them
_FUSED = ("BatchNormalization", "Add", "Mul", "Identity", "Reshape", "Squeeze", "Unsqueeze")


def import_onnx(
    source: str | Path | onnx.ModelProto,
    *,
    batch: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> ImportedModel:
    """Read an ONNX model, pin its shapes, simplify it and convert it to Relax.

    Parameters
    ----------
    source
        A file, or a model in memory (then without external data).
    batch
        The size of leading dimensions that the model leaves open.
    shapes
        Whole input shapes by input name, for models that leave other dimensions open.

    Raises
    ------
    ModelError
        When the file is missing, damaged or not ONNX, uses an operator that cannot be converted, leaves a dimension
        open or holds NaN or infinite weights; naming the file and the input, node or tensor.
    InputError
        When `batch` or `shapes` do not fit the model.
    """
    model, label = prepared_onnx(source, batch=batch, shapes=shapes)
    names = _layer_names(model)
    slimmed = slim_model(model, label)
    explicit_padding(slimmed, label)
    module = clean_up(convert_model(slimmed, label))
    main = module["main"]
    inputs = tuple(
        TensorSpec(value.name, static_shape(param) or (), str(param.ty.dtype))
        for value, param in zip(graph_inputs(slimmed), main.params, strict=True)
    )
    convolutions = name_convolutions(module, _named_filters(slimmed, names))
    finite_filters(module, convolutions, label)
    has_runtime = importlib.util.find_spec("onnxruntime") is not None
    return ImportedModel(
        name=model.graph.name or "model" if isinstance(source, onnx.ModelProto) else Path(source).stem,
        module=module,
        inputs=inputs,
        outputs=output_specs(main, [value.name for value in slimmed.graph.output], label),
        convolutions=convolutions,
        reference=OnnxRuntimeReference(model) if has_runtime else None,
    )


def prepared_onnx(
    source: str | Path | onnx.ModelProto,
    *,
    batch: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> tuple[onnx.ModelProto, str]:
    """The model, read and checked, with pinned shapes and explicit padding, and a label for messages.

    Raises
    ------
    ModelError, InputError
        As `import_onnx`.
    """
    try:
        model, label = load_model(source)
        pin_inputs(model, label, batch, shapes)
        refuse_bad_weights(model, label)
        model = inferred(model, label)
        explicit_padding(model, label)
    except TvmSparseError:
        raise
    except Exception as error:  # protobuf, onnx and numpy all raise their own on a damaged file
        label = "ONNX model" if isinstance(source, onnx.ModelProto) else str(source)
        raise ModelError(f"{label}: damaged ONNX model ({one_line(error)})") from error
    return model, label


def _layer_names(model: onnx.ModelProto) -> dict[str, str]:
    """The user's name of every layer, under the name of each tensor that onnxslim may make its output.

    Tensor names are unique in ONNX and onnxslim keeps them, while it renames the nodes that it fuses.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for node in model.graph.node:
        if node.op_type in _NAMED:
            name = node.name or node.input[1]
            if name in taken:
                name = f"{name} ({node.output[0]})"
            taken.add(name)
            names[node.output[0]] = name
        elif node.op_type in _FUSED:
            sources = {names[tensor] for tensor in node.input if tensor in names}
            if len(sources) == 1:
                names[node.output[0]] = sources.pop()
    return names


def _named_filters(model: onnx.ModelProto, names: Mapping[str, str]) -> list[NamedFilter]:
    constants = {init.name: init for init in model.graph.initializer}
    found: list[NamedFilter] = []
    for node in model.graph.node:
        if node.op_type not in _NAMED or node.input[1] not in constants:
            continue
        weight = numpy_helper.to_array(constants[node.input[1]])
        if node.op_type in _LINEAR:
            weight = weight.T if any(attr.name == "transB" and attr.i for attr in node.attribute) else weight
            if not is_pruned(weight):
                continue
            weight = filter_of(weight)
        found.append(NamedFilter(names.get(node.output[0], ""), weight.shape, weight))
    return found
