"""torch.export programs as Relax modules."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm
from tvm import relax

from tvm_sparse.deploy.metadata import TensorSpec
from tvm_sparse.errors import InputError, ModelError
from tvm_sparse.network.cleanup import clean_up
from tvm_sparse.network.imported import (
    ImportedModel,
    finite_filters,
    one_line,
    output_specs,
    static_shape,
    times,
)
from tvm_sparse.network.layer_names import NamedFilter, name_convolutions
from tvm_sparse.network.linear import filter_of, is_pruned
from tvm_sparse.network.references import TorchReference
from tvm_sparse.network.shapes import pin_shapes

if TYPE_CHECKING:
    import torch

_TRAINING = tuple(
    f"{name}.default" for name in ("_native_batch_norm_legit_functional", "_native_batch_norm_legit", "native_dropout")
)
_WEIGHT_SUFFIX = re.compile(r"(\.parametrizations)?\.weight(_orig|\.original\d*)?$")


def import_torch(
    source: str | Path | torch.export.ExportedProgram | torch.nn.Module,
    example_inputs: Sequence[Any] | None = None,
    *,
    batch: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> ImportedModel:
    """Read a torch.export program and convert it to Relax.

    A .pt2 file may hold pickled objects: load only files whose origin you trust.

    Parameters
    ----------
    source
        A file written by `torch.export.save`, a program, or a module together with `example_inputs`.
    batch
        The size of leading dimensions that were exported as dynamic.
    shapes
        Whole input shapes by input name, for programs with other dynamic dimensions.

    Raises
    ------
    ModelError
        When torch is not installed, the file is missing or damaged, was exported in training mode, uses an operator
        that cannot be converted, leaves a dimension open or holds NaN or infinite weights.
    InputError
        When `batch` or `shapes` do not fit the program.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise ModelError("torch is not installed: pip install tvm-sparse[torch]") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own deprecations
        program, label, name = torch_program(source, example_inputs)
        return _convert(program, label, name, batch, shapes)


def torch_program(
    source: Any, example_inputs: Sequence[Any] | None = None
) -> tuple[torch.export.ExportedProgram, str, str]:
    """The program with a label for messages and the model's name.

    Raises
    ------
    ModelError, InputError
        As `import_torch`.
    """
    import torch

    if isinstance(source, (str, Path)):
        return _load(Path(source)), str(source), Path(source).stem
    if not isinstance(source, torch.nn.Module):
        return source, "torch program", "model"
    name = type(source).__name__
    label = f"torch module '{name}'"
    if example_inputs is None:
        raise InputError(f"{label}: a torch module needs example_inputs to be exported with")
    if source.training:
        raise ModelError(f"{label}: the module is in training mode: call .eval() first")
    try:
        return torch.export.export(source, tuple(example_inputs)), label, name
    except Exception as error:
        raise ModelError(f"{label}: torch.export failed ({one_line(error)})") from error


def _load(path: Path) -> torch.export.ExportedProgram:
    import torch

    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    log = logging.getLogger("torch.export")  # prints a traceback of what is raised anyway
    was, log.disabled = log.disabled, True
    try:
        return torch.export.load(path)
    except Exception as error:
        raise ModelError(f"{path}: truncated, or not a file of torch.export.save ({one_line(error)})") from error
    finally:
        log.disabled = was


def _convert(
    program: torch.export.ExportedProgram,
    label: str,
    name: str,
    batch: int | None,
    shapes: Mapping[str, Sequence[int]] | None,
) -> ImportedModel:
    from tvm.relax.frontend.torch import from_exported_program

    _refuse_bad_weights(program, label)
    try:
        decomposed = program.run_decompositions(_decompositions())
    except Exception as error:
        raise ModelError(f"{label}: torch cannot decompose the program ({one_line(error)})") from error
    _refuse_operators(decomposed, label)
    try:
        module = from_exported_program(decomposed, run_ep_decomposition=False, unwrap_unit_return_tuple=True)
    except Exception as error:
        raise ModelError(f"{label}: the program cannot be converted ({one_line(error)})") from error
    module = clean_up(_pin(module, label, batch, shapes))
    main = module["main"]
    inputs = tuple(TensorSpec(p.name, static_shape(p) or (), str(p.ty.dtype)) for p in main.params)
    convolutions = name_convolutions(module, _named_filters(decomposed))
    finite_filters(module, convolutions, label)
    outputs = [str(output) for output in decomposed.graph_signature.user_outputs]
    unique = [f"{output}_{i}" if output in outputs[:i] else output for i, output in enumerate(outputs)]
    return ImportedModel(
        name=name,
        module=module,
        inputs=inputs,
        outputs=output_specs(main, unique, label),
        convolutions=convolutions,
        reference=TorchReference(program, tuple(spec.name for spec in inputs)),
    )


def _decompositions() -> Any:
    """Torch's default table without the activations that the matcher wants to see whole."""
    import torch

    table = torch.export.default_decompositions()
    for op in (torch.ops.aten.silu.default, torch.ops.aten.hardswish.default, torch.ops.aten.hardsigmoid.default):
        table.pop(op, None)
    return table


def _refuse_operators(program: torch.export.ExportedProgram, label: str) -> None:
    from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

    known = ExportedProgramImporter().convert_map
    unknown: dict[str, str] = {}
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        target = getattr(node.target, "__name__", str(node.target))
        if target in _TRAINING:
            raise ModelError(f"{label}: node '{node.name}' is in training mode: call .eval() before torch.export")
        if target not in known:
            unknown.setdefault(target, node.name)
    if unknown:
        listed = "; ".join(f"{target} ({node})" for target, node in sorted(unknown.items())[:6])
        more = f" and {len(unknown) - 6} more" if len(unknown) > 6 else ""
        raise ModelError(f"{label}: unsupported operators: {listed}{more}")


def _refuse_bad_weights(program: torch.export.ExportedProgram, label: str) -> None:
    import torch

    for name, tensor in program.state_dict.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            kind = "NaN" if bool(torch.isnan(tensor).any()) else "infinity"
            raise ModelError(f"{label}: {kind} in parameter '{name}'")


def _pin(
    module: tvm.IRModule, label: str, batch: int | None, shapes: Mapping[str, Sequence[int]] | None
) -> tvm.IRModule:
    """Bind the symbolic dimensions of the inputs."""
    dims = {param.name: list(param.ty.shape.values) for param in module["main"].params}
    named: dict[str, list[int | str]] = {
        name: [int(dim) if isinstance(dim, tvm.tirx.IntImm) else str(dim) for dim in own] for name, own in dims.items()
    }
    pinned = pin_shapes(named, label, batch, shapes)
    bound = {
        str(dim): size
        for name, own in dims.items()
        for dim, size in zip(own, pinned[name], strict=True)
        if isinstance(dim, tvm.tirx.Var)
    }
    if bound:
        module = relax.transform.BindSymbolicVars(bound)(module)
    for param in module["main"].params:
        shape = static_shape(param)
        if shape != pinned[param.name]:  # a dimension computed from another one
            wanted, own = times(pinned[param.name]), times(named[param.name])
            raise InputError(f"{label}: shape {wanted} does not fit input '{param.name}', which is {own}")
    return module


def _named_filters(program: torch.export.ExportedProgram) -> list[NamedFilter]:
    """The layers of a program by the path of their module: where in the model the parameter lives."""
    import torch

    signature = program.graph_signature
    paths = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    found: list[NamedFilter] = []
    places = {torch.ops.aten.convolution.default: 1, torch.ops.aten.addmm.default: 2, torch.ops.aten.mm.default: 1}
    for node in program.graph.nodes:
        if node.op != "call_function" or node.target not in places:
            continue
        linear = node.target is not torch.ops.aten.convolution.default
        weight = node.args[places[node.target]]
        if linear and (weight.op != "call_function" or weight.target is not torch.ops.aten.permute.default):
            continue
        weight = weight.args[0] if linear else weight
        shape = tuple(int(size) for size in weight.meta["val"].shape)
        values: np.ndarray[Any, Any] | None = None
        if weight.name in signature.inputs_to_parameters:
            values = program.state_dict[paths[weight.name]].detach().numpy()
        if linear:
            if values is None or not is_pruned(values):
                continue
            shape, values = (*shape, 1, 1), filter_of(values.T)
        # a pruning mask or a reparametrisation stands between the parameter and the convolution
        while weight.op != "placeholder" and weight.all_input_nodes:
            weight = next((n for n in weight.all_input_nodes if "mask" not in n.name), weight.all_input_nodes[0])
        path = _WEIGHT_SUFFIX.sub("", paths.get(weight.name, weight.name))
        found.append(NamedFilter(path, shape, values))
    return found
