"""Load what several stores of a thread need before the first of them.

No compiler moves a load of memory that another kernel may write across a store, for both might be the same place. So a
kernel that adds a residual waits for memory once for every value. Needless once a kernel that waits may declare that
its output overlaps nothing it reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from tvm_sparse.tvm_support.statements import in_sequence

#: Values of a thread in a batch, of which two are on their way at once: registers are short where there are many sums.
MOST_VALUES = 8


@dataclass(frozen=True)
class _Stores:
    """Stores that run under one condition (None: always), with what binds their indices."""

    condition: Any
    binds: tuple[Any, ...]
    stores: tuple[Any, ...]

    def joins(self, other: _Stores) -> bool:
        if self.condition is None or other.condition is None:
            return self.condition is other.condition
        return bool(tvm_ffi.structural_equal(self.condition, other.condition))


def group_loads(body: Any, readable: set[Any], written: set[Any]) -> Any:
    """A kernel's body in which loads of `readable` buffers stand together, in front of the stores that use them.

    Parameters
    ----------
    readable : buffers in global memory that other kernels write and this one does not
    written : those that it stores to
    """

    def sequence(statement: tirx.SeqStmt) -> Any:
        parts = list(_grouped(list(statement.seq), readable, written))
        return in_sequence(parts) if len(parts) < len(statement.seq) else statement

    return tvm_ffi.structural_map(body, (tirx.SeqStmt, sequence), order="pre")


def _grouped(statements: list[Any], readable: set[Any], written: set[Any]) -> Iterator[Any]:
    """The statements, each run of stores that load as one statement."""
    run: list[_Stores] = []
    plain: list[Any] = []
    binds: list[Any] = []
    for statement in [*statements, None]:
        if isinstance(statement, tirx.Bind):
            binds.append(statement)
            continue
        found = _stores_of(statement, written)
        if found is not None and not any(_loads_of(store, readable) for store in found.stores):
            found = None
        alone = found is None or found.condition is not None
        # What is bound in between may move in front of the run unless it was loaded.
        moves = not any(_loads(bind) for bind in binds)
        if run and (found is None or not moves or not found.joins(run[0])):
            yield from [_together(run, readable)] if len(run) > 1 else plain
            run, plain = [], []
        if alone:
            yield from binds
            binds = []
        if found is not None:
            run.append(_Stores(found.condition, (*binds, *found.binds), found.stores))
            plain += [*binds, statement]
        elif statement is not None:
            yield statement
        binds = []


def _stores_of(statement: Any, written: set[Any]) -> _Stores | None:
    """What a statement binds and stores to global memory, if it does nothing else."""
    if isinstance(statement, tirx.IfThenElse) and statement.else_case is None:
        inner = _stores_of(statement.then_case, written)
        if inner is None or inner.condition is not None or _loads(statement.condition):
            return None
        return _Stores(statement.condition, inner.binds, inner.stores)
    parts = list(statement.seq) if isinstance(statement, tirx.SeqStmt) else [statement]
    binds = tuple(part for part in parts if isinstance(part, tirx.Bind))
    stores = tuple(part for part in parts if isinstance(part, tirx.BufferStore) and part.buffer in written)
    if any(_loads(bind) for bind in binds):
        return None
    return _Stores(None, binds, stores) if stores and len(binds) + len(stores) == len(parts) else None


def _loads_of(statement: Any, readable: set[Any]) -> list[Any]:
    return [load for load in _loads(statement) if load.source in readable]


def _loads(statement: Any) -> list[Any]:
    loads: list[Any] = []
    tvm_ffi.structural_walk(statement, (tvm.ir.TensorLoad, loads.append), order="pre")
    return loads


def _together(parts: list[_Stores], readable: set[Any]) -> Any:
    """One statement of all, in batches of so many values: the next one's loads, then one's stores."""
    batches: list[tuple[list[Any], list[Any]]] = [([], [])]
    for store in (store for part in parts for store in part.stores):
        own = _loads_of(store, readable)
        if batches[-1][0] and len(batches[-1][0]) + len(own) > MOST_VALUES:
            batches.append(([], []))
        loads, stores = batches[-1]
        registers = [
            tirx.decl_buffer((1,), load.ty.dtype, f"{load.source.name}_grouped", scope="local") for load in own
        ]
        loads += [tirx.BufferStore(register, load, [0]) for register, load in zip(registers, own, strict=True)]
        stores.append(_replaced(store, own, registers))
    statements: list[Any] = [bind for part in parts for bind in part.binds]
    statements += [tirx.AllocBuffer(load.buffer) for loads, _ in batches for load in loads]
    statements += batches[0][0]
    for (_, stores), (following, _) in zip(batches, [*batches[1:], ([], [])], strict=True):
        statements += [*following, *stores]
    together = in_sequence(statements)
    return together if parts[0].condition is None else tirx.IfThenElse(parts[0].condition, together, None)


def _replaced(store: Any, loads: list[Any], registers: list[Any]) -> Any:
    def replace(load: Any) -> Any:
        register = next((own for own, other in zip(registers, loads, strict=True) if load.same_as(other)), None)
        return load if register is None else tirx.BufferLoad(register, [0])

    return tvm_ffi.structural_map(store, (tvm.ir.TensorLoad, replace), order="post")
