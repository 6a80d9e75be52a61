"""Pruning the convolutions of an ONNX model in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np

from tvm_sparse.errors import InputError, ModelError
from tvm_sparse.prune.graph import LINEAR_SLOTS, ModelGraph, Origin, Use
from tvm_sparse.prune.masks import Array, check_finite, check_sparsity, joint_masks, vector_length
from tvm_sparse.prune.report import ConvPruning, PruneReport

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

#: Protobuf refuses messages of 2 GiB and more; some room is left for what is not a tensor.
MAX_MESSAGE_BYTES = 2**31 - 2**24


@dataclass(frozen=True)
class Settings:
    """The checked arguments of a pruning; see `prune_model`."""

    sparsity: float
    vector: int
    scope: str
    skip: tuple[str, ...]
    linear: bool

    @classmethod
    def of(cls, sparsity: float, pattern: str, scope: str, skip: Sequence[str], linear: bool) -> Settings:
        if scope not in ("layer", "global"):
            raise InputError(f"scope {scope!r}: use 'layer' or 'global'")
        patterns = (skip,) if isinstance(skip, str) else tuple(skip)
        return cls(check_sparsity(sparsity), vector_length(pattern), scope, patterns, linear)


@dataclass
class Conv:
    """A convolution, where its filter comes from, and why it stays as it is (None where it is pruned)."""

    name: str
    weight: str
    use: Use
    origin: Origin
    tensor: TensorProto | None
    skipped: str | None


@dataclass
class Filter:
    """A stored filter to prune and the convolutions that share it."""

    tensor: TensorProto
    readers: list[Use]
    array: Array
    mask: Array = field(init=False)


def prune_model(
    model: ModelProto,
    sparsity: float,
    pattern: str = "unstructured",
    scope: str = "layer",
    skip: Sequence[str] = (),
    linear: bool = False,
) -> tuple[ModelProto, PruneReport]:
    """Set the smallest weights of every convolution to zero, in a copy of the model.

    Pruned are the float16, float32 and float64 filters of Conv nodes, subgraphs and functions included, that are an
    initializer or a Constant. A filter shared by convolutions is pruned once; one that anything else reads too is
    stored a second time for the convolutions.

    Parameters
    ----------
    model : with its external data loaded
    sparsity : fraction of the weights to set to zero, in [0, 1)
    pattern : "unstructured", or "vector:V" for V consecutive output channels together
    scope : "layer" gives every filter this sparsity, "global" ranks all filters of the network together
    skip : fnmatch patterns; a convolution whose node or filter has a matching name is left alone
    linear : prune linear layers too, the constant second operands of Gemm and MatMul nodes that are matrices

    Raises
    ------
    InputError
        An argument out of range, or a pattern of `skip` that matches no convolution.
    ModelError
        NaN or Inf weights, a filter whose data are not loaded or damaged, or a model that onnx.checker refuses.
    """
    import onnx

    settings = Settings.of(sparsity, pattern, scope, skip, linear)
    pruned = onnx.ModelProto()
    pruned.CopyFrom(model)
    report = prune_in_place(pruned, settings)
    if message_bytes(pruned) < MAX_MESSAGE_BYTES:
        try:
            onnx.checker.check_model(pruned)
        except onnx.checker.ValidationError as error:
            raise ModelError(f"the pruned model is not valid ONNX: {one_line(error)}") from error
    return pruned, report


def prune_in_place(model: ModelProto, settings: Settings) -> PruneReport:
    """Prune the model itself; see `prune_model`. A model that is refused is left as it was."""
    graph = ModelGraph(model)
    convs = [_examine(graph, use, node, settings.vector) for use, node in graph.layers(settings.linear)]
    _apply_skips(convs, settings.skip)

    filters: dict[Origin, Filter] = {}
    for conv in convs:
        if conv.skipped is None and conv.tensor is not None:
            if conv.origin not in filters:
                filters[conv.origin] = Filter(conv.tensor, [], _read_filter(conv))
            filters[conv.origin].readers.append(conv.use)
    chosen = list(filters.values())
    for group in [chosen] if settings.scope == "global" else [[one] for one in chosen]:
        masks = joint_masks([one.array for one in group], settings.sparsity, settings.vector)
        for one, mask in zip(group, masks, strict=True):
            one.mask = mask

    before = {conv.origin: _sparsity(conv.tensor) for conv in convs}
    after = dict(before)
    zeros_before, zeros_after = 0, 0
    for origin, one in filters.items():
        zeros_before += _zeros(one.array)
        dropped = ~one.mask & (one.array != 0)
        if dropped.any():
            one.array[dropped] = 0
            shared = graph.uses[origin] - set(one.readers)
            _write(graph.clone(origin, one.readers) if shared else one.tensor, one.array)
        zeros_after += _zeros(one.array)
        after[origin] = _zeros(one.array) / one.array.size

    reports = (
        ConvPruning(
            name=conv.name,
            weight=conv.weight,
            shape=None if conv.tensor is None else tuple(conv.tensor.dims),
            before=before[conv.origin],
            after=before[conv.origin] if conv.skipped else after[conv.origin],
            skipped=conv.skipped,
        )
        for conv in convs
    )
    return PruneReport(tuple(reports), sum(one.array.size for one in chosen), zeros_before, zeros_after)


def message_bytes(model: ModelProto) -> int:
    """Bytes of the model as one protobuf message, to within a few; counted in parts, none of which reaches 2 GiB."""
    parts = (model.graph.initializer, model.graph.sparse_initializer, model.graph.node, model.functions)
    return sum(part.ByteSize() for repeated in parts for part in repeated)


def one_line(error: Exception) -> str:
    """A library's error message on one line, cut where it is long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."


def _examine(graph: ModelGraph, use: Use, node: NodeProto, vector: int) -> Conv:
    from onnx import TensorProto

    weight = node.input[use.slot]
    origin = graph.origin(use.scope, weight)
    tensor = graph.tensor(origin)
    skipped = None
    linear = node.op_type in LINEAR_SLOTS
    if not linear and node.op_type != "Conv":
        skipped = f"{node.op_type} is quantised"
    elif tensor is None:
        skipped = graph.why_not_stored(origin)
    elif not _is_float(tensor):
        skipped = f"the filter is {TensorProto.DataType.Name(tensor.data_type)}, not float16, float32 or float64"
    elif linear and (len(tensor.dims) != 2 or 0 in tensor.dims):
        skipped = f"the weight's shape {tuple(tensor.dims)} is no matrix"
    elif linear and vector > 1 and not any(attribute.name == "transB" and attribute.i for attribute in node.attribute):
        skipped = "the outputs stand along the last axis, vectors go along the first"
    elif not linear and (len(tensor.dims) < 3 or 0 in tensor.dims):
        skipped = f"the filter's shape {tuple(tensor.dims)} is not (K, C/groups, kernel...)"
    return Conv(node.name or node.output[0], weight, use, origin, tensor, skipped)


def _apply_skips(convs: list[Conv], patterns: Sequence[str]) -> None:
    for pattern in patterns:
        found = False
        for conv in convs:
            # Equality first: names such as "layer[0].conv" would be read as a character class.
            if any(
                name == pattern or fnmatchcase(name, pattern) for name in (conv.name, conv.weight, conv.origin.name)
            ):
                found = True
                conv.skipped = conv.skipped or f"skip pattern {pattern!r}"
        if not found:
            names = ", ".join(conv.name for conv in convs[:3])
            hint = f"its convolutions are {names}{', ...' if len(convs) > 3 else ''}" if convs else "it has none"
            raise InputError(f"skip pattern {pattern!r} matches no convolution of the model; {hint}")


def _read_filter(conv: Conv) -> Array:
    name = f"filter {conv.weight!r} of convolution {conv.name!r}"
    assert conv.tensor is not None
    if _is_external(conv.tensor):
        raise ModelError(f"{name} stands outside the model: load the model with its external data, or use prune_file")
    try:
        array = _array(conv.tensor)
    except (ValueError, TypeError) as error:
        raise ModelError(f"{name} is damaged: {one_line(error)}") from error
    check_finite(array, name)
    return array


def _is_float(tensor: TensorProto) -> bool:
    return tensor.data_type in (tensor.FLOAT, tensor.FLOAT16, tensor.DOUBLE)


def _is_external(tensor: TensorProto) -> bool:
    return tensor.data_location == tensor.EXTERNAL


def _array(tensor: TensorProto) -> Array:
    from onnx import numpy_helper

    return np.array(numpy_helper.to_array(tensor))


def _zeros(array: Array) -> int:
    return array.size - int(np.count_nonzero(array))


def _sparsity(tensor: TensorProto | None) -> float | None:
    if tensor is None or not _is_float(tensor) or _is_external(tensor) or 0 in tensor.dims:
        return None
    array = _array(tensor)
    return _zeros(array) / array.size


def _write(tensor: TensorProto, array: Array) -> None:
    """Replace the data of a tensor, whichever field they stood in; name and documentation stay."""
    from onnx import numpy_helper

    for data in ("float_data", "double_data", "int32_data"):
        tensor.ClearField(data)
    tensor.raw_data = numpy_helper.from_array(array).raw_data
