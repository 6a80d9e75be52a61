"""Build small ONNX programs, run their scheduled PrimFuncs one by one on poisoned outputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import tvm
from onnx import helper, numpy_helper
from tvm import relax, tirx
from tvm.relax.frontend.onnx import from_onnx
from tvm.target import Target, codegen

from tvm_sparse.schedules.rules import apply_rules

Shapes = Sequence[Sequence[int]]


def cpu_target(cpu: str | None = None) -> Target:
    """This machine's CPU, or a named one, with two cores."""
    return Target({"kind": "llvm", "mcpu": cpu or codegen.llvm_get_system_cpu(), "num-cores": 2})


def onnx_model(shapes: Shapes, nodes: Iterable[onnx.NodeProto], opset: int = 17, **constants: np.ndarray) -> Any:
    """Inputs x0, x1, … (float32), output y; the constants become initialisers."""
    inputs = [helper.make_tensor_value_info(f"x{n}", onnx.TensorProto.FLOAT, s) for n, s in enumerate(shapes)]
    output = helper.make_empty_tensor_value_info("y")
    initialisers = [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()]
    graph = helper.make_graph(list(nodes), "program", inputs, [output], initialisers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def legalized(model: Any, target: Target) -> tvm.IRModule:
    """The fused, legalized Relax module of an ONNX model, as the network build hands it to the rules."""
    passes = [
        relax.transform.DecomposeOpsForInference(),
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
    ]
    with target:
        return tvm.transform.Sequential(passes)(from_onnx(model))


def prim_funcs(mod: tvm.IRModule) -> dict[str, tirx.PrimFunc]:
    """PrimFuncs by name."""
    return {var.name_hint: func for var, func in mod.functions_items() if isinstance(func, tirx.PrimFunc)}


def is_scheduled(func: tirx.PrimFunc) -> bool:
    """Whether the rules marked it."""
    return bool(func.attrs.get("tirx.is_scheduled", False))


def run_prim_func(func: tirx.PrimFunc, target: Target, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The outputs of a PrimFunc whose last parameters, those beyond `arrays`, are outputs; they start as NaN."""
    library = tvm.compile(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), target=target)
    outputs = []
    for parameter in list(func.params)[len(arrays) :]:
        array = np.empty([int(e) for e in parameter.shape], str(parameter.dtype))
        array.fill(np.nan if array.dtype.kind == "f" else 77)
        outputs.append(tvm.runtime.tensor(array))
    library["main"](*(tvm.runtime.tensor(np.ascontiguousarray(a)) for a in arrays), *outputs)
    return [o.numpy() for o in outputs]


def run_module(mod: tvm.IRModule, target: Target, feeds: Sequence[np.ndarray]) -> np.ndarray:
    """Run the straight-line `main` of a scheduled module call by call."""
    main = mod["main"]
    values: dict[Any, Any] = dict(zip(main.params, feeds, strict=True))

    def value(expr: Any) -> Any:
        if isinstance(expr, relax.Tuple):
            return [value(field) for field in expr.fields]
        if isinstance(expr, relax.TupleGetItem):
            return value(expr.tuple_value)[expr.index]
        if hasattr(expr, "value"):
            return expr.value.numpy()
        if isinstance(expr, relax.Call):
            assert expr.op.name == "relax.call_tir", expr
            outputs = run_prim_func(mod[expr.args[0]], target, value(expr.args[1]))
            return outputs[0] if len(outputs) == 1 else outputs
        return values[expr]

    for block in main.body.blocks:
        for binding in block.bindings:
            values[binding.var] = value(binding.value)
    result: np.ndarray = value(main.body.body)
    return result


def scheduled(model: Any, target: Target) -> tvm.IRModule:
    """`legalized` and `apply_rules`."""
    return apply_rules(legalized(model, target), target)
