"""The kernels that a Relax function calls once TVM has planned its memory, and which of them depend on others."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax, tirx

from tvm_sparse.network.capture import launches, tir_calls
from tvm_sparse.network.imported import bindings_of, is_constant, operator, static_shape
from tvm_sparse.schedules.outputs import stored_channels

_RUN = "vm.builtin.cuda_graph.run_or_capture"


@dataclass(frozen=True)
class Access:
    """Memory that a call reads or writes; None is any memory.

    `slices` are the channels of a tensor `frame` that lies there, (first, last + 1) each; None is all of the memory.
    """

    memory: Hashable
    frame: Hashable = None
    slices: tuple[tuple[int, int], ...] | None = None

    def meets(self, other: Access) -> bool:
        """Whether both may touch the same bytes."""
        if self.memory is None or other.memory is None:
            return True
        if self.memory != other.memory:
            return False
        if self.slices is None or other.slices is None or self.frame != other.frame:
            return True
        return any(mine[0] < theirs[1] and theirs[0] < mine[1] for mine in self.slices for theirs in other.slices)


@dataclass(frozen=True)
class KernelCall:
    """A call of a function that starts so many kernels. What it writes it may also read.

    `place` is its binding's in the function that calls it; `weights` says whether it reads constants.
    """

    function: str
    reads: tuple[Access, ...]
    writes: tuple[Access, ...]
    kernels: int = 1
    weights: bool = True
    place: int = 0

    def depends_on(self, other: KernelCall) -> bool:
        """Whether the two must not run at once: one writes what the other reads or writes."""
        pairs = [(self.writes, other.writes), (self.writes, other.reads), (self.reads, other.writes)]
        return any(mine.meets(theirs) for some, others in pairs for mine in some for theirs in others)


def written_parameters(module: tvm.IRModule) -> dict[str, set[int]]:
    """By a function's name, the positions of the parameters that it writes."""
    written: dict[str, set[int]] = {}
    for call in tir_calls(module):
        name, given = call.args[0].name_hint, len(call.args[1].fields)
        outputs = set(range(given, len(module[name].params)))
        if operator(call) != "relax.call_tir":
            outputs |= {int(index) for index in call.attrs.inplace_indices if int(index) >= 0}
        written[name] = written.get(name, set()) | outputs
    return written


@dataclass(frozen=True)
class _Tensor:
    """A tensor, or a view of it, and the memory it lies in."""

    memory: Hashable
    name: Hashable


@dataclass(frozen=True)
class _Item:
    """An item of a tuple of which nothing is known."""

    of: Hashable
    index: int


class PlannedCalls:
    """What a lowered Relax function calls.

    `runs` are its calls of kernels; anything else that may touch memory ends a run. `captures` are the functions that
    it runs as a CUDA graph, by name, each with what is known of its arguments.
    """

    def __init__(
        self,
        module: tvm.IRModule,
        caller: relax.Function,
        written: Mapping[str, Collection[int]],
        given: Sequence[Any] = (),
    ) -> None:
        self._module, self._written = module, written
        self._values: dict[relax.Var, Any] = dict(zip(caller.params, given, strict=False))
        self.runs: list[list[KernelCall]] = [[]]
        self.captures: dict[str, list[Any]] = {}
        for place, (var, value) in enumerate(bindings_of(caller)):
            self._place = place
            self._values[var] = self._value(var, value)

    def _value(self, var: relax.Var, value: Any) -> Any:
        """What is known of a value: a tensor, a tuple of what is known, or what tells a storage from others."""
        if isinstance(value, relax.Var):
            return self._values.get(value, value)
        if isinstance(value, relax.Tuple):
            return tuple(self._value(var, field) for field in value.fields)
        if isinstance(value, relax.TupleGetItem):
            items = self._value(var, value.tuple_value)
            return items[value.index] if isinstance(items, tuple) else _Item(items, value.index)
        if operator(value) == "relax.memory.alloc_tensor":
            return _Tensor(self._value(var, value.args[0]), var)
        if operator(value) == "relax.reshape":
            return self._value(var, value.args[0])
        if isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.GlobalVar):
            function = self._module[value.op]
            if isinstance(function, tirx.PrimFunc):
                self.runs[-1].append(self._call(value, function))
                return var
        if operator(value) == "relax.call_builtin_with_ctx" and str(value.args[0].global_symbol) == _RUN:
            called, arguments = value.args[1].fields[:2]
            self.captures[called.name_hint] = [self._value(var, argument) for argument in arguments.fields]
        if not is_constant(value):
            self.runs.append([])
        return var

    def _call(self, call: relax.Call, function: tirx.PrimFunc) -> KernelCall:
        name = call.op.name_hint
        written = self._written.get(name, range(len(call.args)))
        reads: list[Access] = []
        writes: list[Access] = []
        for index, (argument, parameter) in enumerate(zip(call.args, function.params, strict=True)):
            if is_constant(argument):
                continue
            access = self._access(argument, stored_channels(function, parameter) if index in written else ())
            (writes if index in written else reads).append(access)
        weights = any(map(is_constant, call.args))
        return KernelCall(name, tuple(reads), tuple(writes), launches(function), weights, self._place)

    def _access(self, argument: Any, channels: Iterable[tuple[int, int]]) -> Access:
        tensor, shape = self._values.get(argument) if isinstance(argument, relax.Var) else None, static_shape(argument)
        if not isinstance(tensor, _Tensor):
            return Access(None)
        if not channels or shape is None:
            return Access(tensor.memory)
        # Channels are the same bytes in every view that has as many of them for each image.
        return Access(tensor.memory, (tensor.name, shape[:2]), tuple(channels))
