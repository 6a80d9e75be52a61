"""Load what a kernel uses last before it does its work: the bias, the residual, the order of the rows.

Where TVM loads them, behind barriers that no compiler moves a load across, they cost a kernel of five microseconds the
latency of the second-level cache once more, and twice where one is the place of the other. Needless once TVM schedules
loads across barriers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from tvm_sparse.tvm_support.statements import in_sequence

#: Values of a thread that are loaded early. A kernel with more of them has other things to wait for.
MOST_VALUES = 16


@dataclass(frozen=True)
class EarlyLoads:
    """A kernel's body that finds in registers what its last statements loaded, and what fills these registers."""

    body: Any
    constants: tuple[Any, ...] = ()
    others: tuple[Any, ...] = ()


def stored_to(body: Any) -> set[Any]:
    """The buffers that a kernel writes."""
    stores: list[Any] = []
    tvm_ffi.structural_walk(body, (tirx.BufferStore, lambda store: stores.append(store.buffer)), order="pre")
    return set(stores)


def load_early(body: Any, constant: set[Any], readable: set[Any], written: set[Any]) -> EarlyLoads:
    """Take single loads out of the statements of a kernel that write to global memory.

    Parameters
    ----------
    body : of a lowered kernel
    constant, readable, written
        The buffers in global memory that no kernel writes, those that only others write, those that this one does.

    Returns
    -------
    EarlyLoads
        `constants` may stand wherever all threads come by; `others` behind them, where the memory may be read.
    """
    split = _Split(constant, readable, written)
    changed = split.statement(body, [])
    if not 0 < len(split.registers) <= MOST_VALUES:
        return EarlyLoads(body)
    body = in_sequence([*map(tirx.AllocBuffer, split.registers), changed])
    return EarlyLoads(body, tuple(split.constants), tuple(split.others))


class _Split:
    """Walks a kernel's statements in the order in which a thread runs them."""

    def __init__(self, constant: set[Any], readable: set[Any], written: set[Any]) -> None:
        self._constant, self._readable, self._written = constant, readable, written
        self._bound: dict[Any, Any] = {}
        self._known: set[Any] = set()
        self._values: list[Any] = []
        self.registers: list[Any] = []
        self.constants: list[Any] = []
        self.others: list[Any] = []

    def statement(self, statement: Any, conditions: list[Any]) -> Any:
        """The statement, which runs where the conditions hold, with its loads taken out."""
        if isinstance(statement, tirx.AttrStmt):
            if statement.attr_key == "thread_extent":
                self._known.add(statement.node.var)
            body = self.statement(statement.body, conditions)
            return tirx.AttrStmt(statement.node, statement.attr_key, statement.value, body)
        if isinstance(statement, tirx.SeqStmt):
            return tirx.SeqStmt([self.statement(part, conditions) for part in statement.seq])
        if isinstance(statement, tirx.Bind) and (value := self._resolved(statement.value)) is not None:
            self._bound[statement.var] = value
        if isinstance(statement, tirx.IfThenElse) and statement.else_case is None:
            condition = self._resolved(statement.condition)
            if condition is not None:
                then = self.statement(statement.then_case, [*conditions, condition])
                return tirx.IfThenElse(statement.condition, then, None)
        if isinstance(statement, tirx.BufferStore) and statement.buffer in self._written:
            replace = (tvm.ir.TensorLoad, lambda load: self._taken_out(load, conditions))
            return tvm_ffi.structural_map(statement, replace, order="post")
        return statement

    def _resolved(self, expr: Any) -> Any:
        """The expression in terms of the axes of threads and of registers that are filled; None if it has others."""
        resolved = tvm_ffi.structural_map(expr, (tirx.Var, lambda var: self._bound.get(var, var)), order="post")
        used: list[Any] = []
        tvm_ffi.structural_walk(resolved, (tirx.Var, used.append), order="pre")
        return resolved if all(var in self._known for var in used) else None

    def _taken_out(self, load: Any, conditions: list[Any]) -> Any:
        source = load.source
        if source not in self._constant and source not in self._readable:
            return load
        if len(load.indices) != 1 or "x" in str(load.ty.dtype):
            return load
        place = self._resolved(load.indices[0])
        if place is None:
            return load
        value = tirx.BufferLoad(source, [place])
        if conditions:
            value = tirx.if_then_else(reduce(tirx.And, conditions), value, tirx.const(0, source.dtype))
        for register, known in zip(self.registers, self._values, strict=True):
            if tvm_ffi.structural_equal(known, value):
                return tirx.BufferLoad(register, [0])
        register = tirx.decl_buffer((1,), source.dtype, f"{source.name}_early", scope="local")
        self.registers.append(register)
        self._values.append(value)
        self._known.add(register)
        filled = tirx.BufferStore(register, value, [0])
        (self.constants if source in self._constant else self.others).append(filled)
        return tirx.BufferLoad(register, [0])
