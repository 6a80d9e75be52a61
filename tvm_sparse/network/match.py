"""Find every 2-D convolution with a constant filter, together with what can be fused behind it.

Behind a convolution, each used nowhere else: additions of a per-channel constant (bias), one addition of a tensor of
the shape of the output (residual), one activation, one reshape of single pixels to (n, k), in this order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from tvm import relax
from tvm.target import Target

from tvm_sparse.network.imported import (
    CONVOLUTIONS,
    Array,
    ConvInfo,
    bindings_of,
    is_constant,
    operator,
    per_channel,
    scalar,
    static_shape,
    variables_in,
)
from tvm_sparse.workload import ELEMENT_BYTES, ConvWorkload, Epilogue


def template_dtypes(target: Target) -> tuple[str, ...]:
    """The dtypes of convolutions that there are templates for."""
    return tuple(ELEMENT_BYTES) if target.kind.name == "cuda" else ("float32",)


@dataclass(frozen=True)
class ConvLayer:
    """One convolution of the network: what it computes and where it stands in the Relax function.

    `root` is the variable whose value the layer computes, its fused epilogue included; `absorbed` are the variables in
    between that nobody else reads. `workload` has no epilogue when `reason` says why no template can take the layer.
    `merged` are the layers that this one computes at once, in the order of its output channels; see siblings. Of x it
    reads every so manieth row and column; see subsample. Its output is stored by the phases of a stride, `phases`, and
    `strided` is the layer of the model that this one computes on such an input; see phases.
    """

    name: str
    workload: ConvWorkload | None
    weight: Array = field(repr=False)
    x: Any = field(repr=False)
    root: relax.Var = field(repr=False)
    bias: Array | None = field(default=None, repr=False)
    residual: Any = field(default=None, repr=False)
    absorbed: tuple[relax.Var, ...] = field(default=(), repr=False)
    reason: str = ""
    merged: tuple[ConvLayer, ...] = field(default=(), repr=False)
    every: tuple[int, int] = (1, 1)
    phases: tuple[int, int] = (1, 1)
    strided: ConvLayer | None = field(default=None, repr=False)

    @property
    def parts(self) -> tuple[ConvLayer, ...]:
        """The layers of the model that this one computes: those merged, or itself."""
        return self.merged or (self,)

    @property
    def depthwise(self) -> bool:
        return self.workload is not None and self.workload.groups == self.workload.c > 1

    @property
    def density(self) -> float:
        """Of the filter that runs; that of the model's is 1 - `sparsity`."""
        return float(np.count_nonzero(self.weight)) / self.weight.size

    @property
    def in_model(self) -> ConvLayer:
        """The layer as the model has it, but for what is merged."""
        return self.strided or self

    @property
    def sparsity(self) -> float:
        return 1.0 - self.in_model.density


def match_layers(
    function: relax.Function, convolutions: tuple[ConvInfo, ...], dtypes: Collection[str] = ("float32",)
) -> list[ConvLayer]:
    """Every convolution with a constant filter in the bindings of `function`, in order; `convolutions` names them.

    `dtypes` are those that there are templates for.
    """
    finder = _Finder(function, dtypes)
    calls = [
        (var, value) for var, value in finder.bindings if operator(value) in CONVOLUTIONS and is_constant(value.args[1])
    ]
    names = [info.name for info in convolutions]
    # The later of two convolutions that meet in an addition takes it, so that the earlier one's value exists by then.
    found = [finder.layer(name, var, call) for name, (var, call) in reversed(list(zip(names, calls, strict=True)))]
    return found[::-1]


class _Finder:
    def __init__(self, function: relax.Function, dtypes: Collection[str]) -> None:
        self.dtypes = dtypes
        self.bindings = bindings_of(function)
        self.values = dict(self.bindings)
        self.taken: set[relax.Var] = set()
        self.users: dict[relax.Var, list[relax.Var | None]] = defaultdict(list)
        for var, value in self.bindings:
            for used in variables_in(value):
                self.users[used].append(var)
        for used in variables_in(function.body.body):
            self.users[used].append(None)

    def layer(self, name: str, var: relax.Var, call: relax.Call) -> ConvLayer:
        weight = call.args[1].value.numpy()
        layer = ConvLayer(name, None, weight, call.args[0], var)
        reason = _unsupported(call, self.dtypes)
        if reason:
            return replace(layer, reason=reason)
        workload = _workload(call, weight)
        layer = replace(layer, workload=workload)
        layer = self._take_biases(layer)
        layer = self._take_residual(layer)
        return self._take_flattening(self._take_activation(layer))

    def _only_user(self, layer: ConvLayer) -> tuple[relax.Var, Any] | None:
        users = self.users[layer.root]
        if len(users) != 1 or users[0] is None or users[0] in self.taken:
            return None
        return users[0], self.values[users[0]]

    def _extend(self, layer: ConvLayer, root: relax.Var, **changes: Any) -> ConvLayer:
        self.taken.add(root)
        return replace(layer, root=root, absorbed=(*layer.absorbed, layer.root), **changes)

    def _take_biases(self, layer: ConvLayer) -> ConvLayer:
        while (user := self._only_user(layer)) is not None and operator(user[1]) == "relax.add":
            other = _other(user[1], layer.root)
            bias = _bias(other, layer.weight)
            if bias is None or static_shape(user[0]) != static_shape(layer.root):
                break
            layer = self._extend(layer, user[0], bias=bias if layer.bias is None else layer.bias + bias)
        return self._with_epilogue(layer, bias=layer.bias is not None)

    def _take_residual(self, layer: ConvLayer) -> ConvLayer:
        user = self._only_user(layer)
        if user is None or operator(user[1]) != "relax.add":
            return layer
        other = _other(user[1], layer.root)
        same = static_shape(other) == static_shape(layer.root) and str(other.ty.dtype) == str(layer.root.ty.dtype)
        if not same or other.same_as(layer.root):
            return layer
        return self._with_epilogue(self._extend(layer, user[0], residual=other), residual=True)

    def _take_activation(self, layer: ConvLayer) -> ConvLayer:
        user = self._only_user(layer)
        if user is None:
            return self._take_hard_swish(layer)
        name, call = operator(user[1]), user[1]
        if name == "relax.nn.relu":
            return self._with_epilogue(self._extend(layer, user[0]), activation="relu")
        if name == "relax.nn.silu":
            return self._with_epilogue(self._extend(layer, user[0]), activation="silu")
        if name == "relax.clip":
            bounds = tuple(float(bound.value) for bound in call.args[1:3])
            layer = self._extend(layer, user[0])
            if bounds == (0.0, 6.0):
                return self._with_epilogue(layer, activation="relu6")
            return self._with_epilogue(layer, activation="clip", bounds=bounds)
        return layer

    def _take_flattening(self, layer: ConvLayer) -> ConvLayer:
        """(n, k, 1, 1) as (n, k), which a kernel stores as well."""
        user, shape = self._only_user(layer), static_shape(layer.root)
        if user is None or shape is None or operator(user[1]) != "relax.reshape" or shape[2:] != (1, 1):
            return layer
        return self._extend(layer, user[0]) if static_shape(user[0]) == shape[:2] else layer

    def _take_hard_swish(self, layer: ConvLayer) -> ConvLayer:
        """multiply(y, divide(clip(add(y, 3), 0, 6), 6)), the one form that the clean-up leaves."""
        chain = [layer.root]
        for name in ("relax.add", "relax.clip", "relax.divide", "relax.multiply"):
            users = [user for user in self.users[chain[-1]] if user is not None and operator(self.values[user]) == name]
            if len(users) != 1 or users[0] in self.taken or (name != "relax.add" and len(self.users[chain[-1]]) != 1):
                return layer
            chain.append(users[0])
        y, shifted, clipped, gate, product = chain
        constants = (self.values[shifted].args[1], *self.values[clipped].args[1:3], self.values[gate].args[1])
        exact = [scalar(constant) for constant in constants] == [3.0, 0.0, 6.0, 6.0]
        inputs_match = all(self.values[product].args[i].same_as(v) for i, v in enumerate((y, gate)))
        if len(self.users[y]) != 2 or not exact or not inputs_match:
            return layer
        self.taken.update(chain[1:])
        layer = replace(layer, root=product, absorbed=(*layer.absorbed, y, shifted, clipped, gate))
        return self._with_epilogue(layer, activation="hard_swish")

    @staticmethod
    def _with_epilogue(layer: ConvLayer, **changes: Any) -> ConvLayer:
        assert layer.workload is not None
        epilogue: Epilogue = replace(layer.workload.epilogue, **changes)
        return replace(layer, workload=replace(layer.workload, epilogue=epilogue))


def _unsupported(call: relax.Call, supported: Collection[str]) -> str:
    """Why no template takes this convolution; empty when one does."""
    name = str(operator(call)).removeprefix("relax.nn.")
    if name != "conv2d":
        return f"{name} stays dense"
    attrs = call.attrs
    if str(attrs.data_layout) != "NCHW" or str(attrs.kernel_layout) != "OIHW":
        return f"layout {attrs.data_layout}/{attrs.kernel_layout} stays dense"
    dtypes = {str(call.args[0].ty.dtype), str(call.args[1].ty.dtype), str(call.ty.dtype)}
    if len(dtypes) > 1 or not dtypes <= set(supported):
        return f"dtype {'/'.join(sorted(dtypes))} stays dense"
    if static_shape(call.args[0]) is None:
        return "a shape that depends on the data stays dense"
    return ""


def _workload(call: relax.Call, weight: Array) -> ConvWorkload:
    shape = static_shape(call.args[0])
    assert shape is not None
    (n, c, h, w), (k, _, r, s), attrs = shape, weight.shape, call.attrs
    stride_h, stride_w, dilation_h, dilation_w = (int(step) for step in (*attrs.strides, *attrs.dilation))
    top, left, bottom, right = (int(pad) for pad in attrs.padding)
    stride, dilation, padding = (stride_h, stride_w), (dilation_h, dilation_w), (top, left, bottom, right)
    return ConvWorkload(n, c, h, w, k, r, s, stride, padding, dilation, int(attrs.groups), str(call.ty.dtype))


def _other(call: relax.Call, var: relax.Var) -> Any:
    left, right = call.args
    return right if left.same_as(var) else left


def _bias(expr: Any, weight: Array) -> Array | None:
    """The (k,) values of a constant that broadcasts over everything but the channels of (n, k, p, q)."""
    if not is_constant(expr) or (array := expr.value.numpy()).dtype != weight.dtype:
        return None
    return per_channel(array, len(weight))
