"""Copies of images that are paired, element by element, in shared memory: through registers.

    held := chunk 0                              (global memory to registers, as wide as it lies)
    start to copy the filter of chunk 0          (cp.async)
    for chunk of channels:
        wait for the filter and for all threads
        tile := held
        held := chunk + 1, start to copy its filter
        wait for all threads
        sum(chunk)

cp.async moves 4 bytes at least, so it cannot interleave elements of 2. Whole rows are copied as they lie in memory
(plane_copies), almost without tests: what surrounds the images in the tile is zero from the start. Any other tile is
copied place by place, with a test each.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.backend.cuda.op import cuda_func_call
from tvm.script import tirx as T

from tvm_sparse.compute.pair_tiling import PAIR, PairTiling
from tvm_sparse.schedules.blocks import changed_block
from tvm_sparse.schedules.plane_copies import WIDTH, PlaneCopies, plane_copies
from tvm_sparse.schedules.storage import find_buffer, replace_buffer

INTERLEAVE = "interleave"
#: Bytes of an asynchronous copy that passes by the cache of a multiprocessor.
WIDEST_COPY_BYTES = 16
#: Chunks of the filter in shared memory: one is read while the other is written.
HALVES = 2
#: Words that are stored at once: TVM's CUDA has vectors of four 16-bit elements.
WORDS_AT_ONCE = 2
#: How CUDA calls an element.
ELEMENT = {"float16": "half", "bfloat16": "nv_bfloat16"}


def mark_interleave(sch: s_tir.Schedule, loop: Any) -> None:
    """Mark the outermost loop of the copies that pair images, whose innermost loops are over elements and pairs."""
    sch.annotate(loop, INTERLEAVE, 1)


def copy_pairs(func: tirx.PrimFunc, tiling: PairTiling, row_blocks: int) -> tirx.PrimFunc:
    """Put the copies above in the place of the marked loops, and of those of the filter in front of them.

    Parameters
    ----------
    row_blocks : of a block of threads, whose share of the filter is staged
    """
    old = find_buffer(func, "tile_shared.dyn")
    tile = tirx.decl_buffer((tiling.words.elements, PAIR), old.dtype, old.name, scope=old.scope())
    held: list[Any] = []

    def rewrite(loop: tirx.For) -> Any:
        parts = list(loop.body.seq) if isinstance(loop.body, tirx.SeqStmt) else []
        at = [n for n, part in enumerate(parts) if isinstance(part, tirx.For) and INTERLEAVE in part.annotations]
        if not at:
            return loop
        nest = _Nest(parts[at[0]])
        planes = plane_copies(tiling, math.prod(int(each.extent) for each in nest.threads))
        copies = _Places(nest, tile, loop) if planes is None else _Planes(nest, tile, loop, planes)
        held.append(copies.held)
        filters = [_Nest(part) for part in parts[: at[0]]]
        return _in_turn(loop, copies, filters, parts[at[0] + 1 :])

    body = tvm_ffi.structural_map(func.body, (tirx.For, rewrite), order="post")
    root = changed_block(body.block, alloc_buffers=[*body.block.alloc_buffers, *held])
    func = func.with_body(s_tir.SBlockRealize(body.iter_values, body.predicate, root))
    staged = {
        "rows": ((row_blocks,), lambda at: [at[1] % row_blocks]),
        "values": (None, lambda at: at[2:]),
        "offsets": (None, lambda at: at[2:]),
    }
    for name, (shape, inside) in staged.items():
        func = _halved(func, f"{name}_shared.dyn", shape, inside)
    return replace_buffer(func, old, tile, lambda at: at[5:])


def _halved(
    func: tirx.PrimFunc, name: str, shape: tuple[int, ...] | None, inside: Callable[[Sequence[Any]], Sequence[Any]]
) -> tirx.PrimFunc:
    """Keep two chunks of a part of the filter in turn, of that only what this block of threads has."""
    old = find_buffer(func, name)
    new = tirx.decl_buffer((HALVES, *(shape or old.shape[2:])), old.dtype, old.name, scope=old.scope())
    return replace_buffer(func, old, new, lambda at: [at[0] % HALVES, *inside(at)])


def _in_turn(loop: tirx.For, copies: _Copies, filters: list[_Nest], work: list[Any]) -> Any:
    """The loop over chunks and what is in front of it."""

    def filter_of(chunk: Any) -> list[Any]:
        return [_asynchronous(nest, loop, chunk) for nest in filters] + [_call("cp.async.commit_group")]

    first, following = _number(0), loop.loop_var + 1
    before = [_touched(filters, copies.tile), copies.loads(first), *filter_of(first), *copies.cleared()]
    wait = [_call("cp.async.wait_group", 0), _barrier()]
    ahead = [copies.loads(following), *filter_of(following)]
    inside = [*wait, copies.stores(loop.loop_var), *ahead, _barrier(), *work]
    return tirx.SeqStmt([*before, tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, tirx.SeqStmt(inside))])


def _touched(filters: list[_Nest], tile: Any) -> Any:
    """A statement that looks at every buffer, and does nothing.

    TVM 0.27 sees no use of a buffer in the copies to it: without this it would give two of them the same memory, or one
    of few bytes none.
    """
    targets = [nest.target for nest in filters]
    looks = [tirx.BufferLoad(each, [half, *[0] * (len(each.shape) - 1)]) for each in targets for half in range(HALVES)]
    looks.append(tirx.BufferLoad(tile, [0, 0]))
    kinds = {"int32": "int", **ELEMENT}
    takes = ", ".join(kinds[str(look.source.dtype)] for look in looks)
    source = f"\n__forceinline__ __device__ void pair_buffers({takes}) {{\n}}\n"
    return _block(tirx.Evaluate(cuda_func_call("pair_buffers", *looks, source_code=source, return_type="void")))


def _asynchronous(nest: _Nest, chunks: tirx.For, chunk: Any) -> Any:
    """A chunk's copies of the filter by cp.async."""
    *around, elements = nest.loops
    size = int(elements.extent) * tvm.DataType(str(nest.target.dtype)).itemsize

    def copy(new: list[tuple[Any, Any]]) -> Any:
        values = [*new, (chunks.loop_var, chunk), (elements.loop_var, _number(0))]
        target = tirx.BufferLoad(nest.target, [_put(index, values) for index in nest.place])
        cached = "cg" if size == WIDEST_COPY_BYTES else "ca"
        call = T.ptx[f"cp.async.{cached}.shared.global"](
            T.address_of(target), T.address_of(_put(nest.value, values)), size
        )
        return tirx.IfThenElse(_put(nest.inside, values), tirx.Evaluate(call), None)

    return _nested(chunks, chunk, around, copy)


class _Nest:
    """The marked loops and the copy in them, without block variables."""

    def __init__(self, marked: tirx.For) -> None:
        self.loops: list[tirx.For] = []
        inner: Any = marked
        while isinstance(inner, tirx.For):
            self.loops.append(inner)
            inner = inner.body
        self.threads = [loop for loop in self.loops if loop.thread_binding is not None]
        own = [(each.var, value) for each, value in zip(inner.block.iter_vars, inner.iter_values, strict=True)]
        store = inner.block.body
        self.target = store.buffer
        self.inside = inner.predicate
        self.value = _put(store.value, own)
        self.place = [_put(index, own) for index in store.indices]


class _Copies(ABC):
    """Both halves of the copies, loads and stores, in the loop over `chunks`."""

    def __init__(self, nest: _Nest, tile: Any, chunks: tirx.For, held: tuple[int, ...]) -> None:
        self._nest, self.tile, self._chunks = nest, tile, chunks
        self.held = tirx.decl_buffer(held, tile.dtype, "held", scope="local")

    @abstractmethod
    def loads(self, chunk: Any) -> Any:
        """A chunk, if there is such a one, to registers."""

    @abstractmethod
    def stores(self, chunk: Any) -> Any:
        """From there to the tile."""

    def cleared(self) -> list[Any]:
        """What makes the tile zero, where not all of it is copied."""
        return []

    def _stored(self, word: Any, at: list[Any], elements: list[int]) -> Any:
        """The store of one or two neighbouring words, of elements that are held at `at`."""
        turns = [tirx.BufferLoad(self.held, [*at, image, element]) for element in elements for image in range(PAIR)]
        return self._stored_words(word, turns)

    def _stored_words(self, word: Any, turns: list[Any]) -> Any:
        element, count = ELEMENT[str(self.tile.dtype)], len(turns)
        name, names = f"pair_store_{element}{count}", "abcd"[:count]
        parameters = ", ".join(f"{element} {each}" for each in names)
        source = (
            f"\n__forceinline__ __device__ void {name}({element}* to, {parameters}) {{\n"
            f"  *({element}{count}*)to = make_{element}{count}({', '.join(names)});\n}}\n"
        )
        to = T.address_of(tirx.BufferLoad(self.tile, [word, 0]))
        return tirx.Evaluate(cuda_func_call(name, to, *turns, source_code=source, return_type="void"))


class _Places(_Copies):
    """Copies place by place, as the marked loops make them: of `width` neighbours of both images."""

    def __init__(self, nest: _Nest, tile: Any, chunks: tirx.For) -> None:
        *self._around, self._element, self._pair = nest.loops
        self._width = int(self._element.extent)
        self._again = [loop for loop in self._around if loop.thread_binding is None]
        super().__init__(nest, tile, chunks, (*(int(loop.extent) for loop in self._again), PAIR, self._width))

    def loads(self, chunk: Any) -> Any:
        def load(new: list[tuple[Any, Any]]) -> Any:
            at = [_put(loop.loop_var, new) for loop in self._again]
            tests, loads, zeros = [], [], []
            for image in range(PAIR):
                value = _put(self._nest.value, self._of(chunk, new, image))
                test, element = _conditional(value)
                place = [*at, image, _run(0, self._width)]
                tests.append(test)
                loads.append(tirx.BufferStore(self.held, _widened(element, self._width), place))
                zeros.append(tirx.BufferStore(self.held, _zeros(self.held.dtype, self._width), place))
            if tvm_ffi.structural_equal(*tests):
                tests, loads, zeros = tests[:1], [tirx.SeqStmt(loads)], [tirx.SeqStmt(zeros)]
            parts = [tirx.IfThenElse(*each) for each in zip(tests, loads, zeros, strict=True)]
            return self._guarded(chunk, new, _sequence(parts))

        return _nested(self._chunks, chunk, self._around, load)

    def stores(self, chunk: Any) -> Any:
        def store(new: list[tuple[Any, Any]]) -> Any:
            at = [_put(loop.loop_var, new) for loop in self._again]
            word = _put(self._nest.place[5], self._of(chunk, new))
            run = min(self._width, WORDS_AT_ONCE)
            parts = [
                self._stored(word + first, at, list(range(first, first + run))) for first in range(0, self._width, run)
            ]
            return self._guarded(chunk, new, _sequence(parts))

        return _nested(self._chunks, chunk, self._around, store)

    def _of(self, chunk: Any, new: list[tuple[Any, Any]], image: int = 0) -> list[tuple[Any, Any]]:
        """What stands for the variables of the nest in the first element of a copy."""
        loops = (self._chunks, chunk), (self._element, _number(0)), (self._pair, _number(image))
        return [*new, *((loop.loop_var, value) for loop, value in loops)]

    def _guarded(self, chunk: Any, new: list[tuple[Any, Any]], statement: Any) -> Any:
        inside = _put(self._nest.inside, self._of(chunk, new))
        return tirx.IfThenElse(inside, statement, None)


class _Planes(_Copies):
    """Copies plane by plane as `planes` says, on a tile that is zero around the images."""

    def __init__(self, nest: _Nest, tile: Any, chunks: tirx.For, planes: PlaneCopies) -> None:
        super().__init__(nest, tile, chunks, (planes.steps, PAIR, WIDTH))
        self._planes = planes

    def cleared(self) -> list[Any]:
        return [_nested(self._chunks, _number(0), self._nest.threads, self._zeros)]

    def loads(self, chunk: Any) -> Any:
        return self._steps(chunk, self._load)

    def stores(self, chunk: Any) -> Any:
        return self._steps(chunk, self._store)

    def _steps(self, chunk: Any, of_step: Callable[[Any, Any, int], Any]) -> Any:
        def steps(new: list[tuple[Any, Any]]) -> Any:
            parts = [of_step(chunk, self._thread(new), step) for step in range(self._planes.steps)]
            return _sequence(parts)

        return _nested(self._chunks, chunk, self._nest.threads, steps)

    def _thread(self, new: list[tuple[Any, Any]]) -> Any:
        number = _number(0)
        for loop, (_, var) in zip(self._nest.threads, new, strict=True):
            number = number * loop.extent + var
        return number

    def _load(self, chunk: Any, thread: Any, step: int) -> Any:
        inside, image, channel, element = self._inside(chunk, thread, step)
        tiling = self._planes.tiling
        _, element_of_x = _conditional(self._nest.value)
        x, group = element_of_x.source, self._nest.place[1]
        image = (self._nest.place[0] * tiling.words.images + image) * PAIR
        channel = group * tiling.workload.c_per_group + chunk * tiling.channels + channel
        plane, row, col = self._planes.source(element)
        row = self._planes.first_row(self._nest.place[2]) + row
        loads, zeros = [], []
        for n in range(PAIR):
            loaded = tirx.BufferLoad(x, [image + n, channel + plane, row, _run(col, WIDTH)])
            place = [_number(step), _number(n), _run(_number(0), WIDTH)]
            loads.append(tirx.BufferStore(self.held, loaded, place))
            zeros.append(tirx.BufferStore(self.held, _zeros(self.held.dtype, WIDTH), place))
        if self._planes.whole:
            return tirx.IfThenElse(inside, tirx.SeqStmt(loads), None)
        there = tirx.all(row >= 0, row < tiling.workload.h)
        return tirx.IfThenElse(inside, tirx.IfThenElse(there, tirx.SeqStmt(loads), tirx.SeqStmt(zeros)), None)

    def _store(self, chunk: Any, thread: Any, step: int) -> Any:
        inside, image, channel, element = self._inside(chunk, thread, step)
        run = self._planes.run
        parts = []
        for first in range(0, WIDTH, run):
            word = self._planes.word(image, channel, element + first)
            parts.append(self._stored(word, [_number(step)], list(range(first, first + run))))
        return tirx.IfThenElse(inside, _sequence(parts), None)

    def _inside(self, chunk: Any, thread: Any, step: int) -> tuple[Any, Any, Any, Any]:
        tiling = self._planes.tiling
        inside, image, channel, element = self._planes.place(thread, step)
        if tiling.chunks * tiling.channels > tiling.workload.c_per_group:
            inside = tirx.all(inside, chunk * tiling.channels + channel < tiling.workload.c_per_group)
        return inside, image, channel, element

    def _zeros(self, new: list[tuple[Any, Any]]) -> Any:
        threads = math.prod(int(loop.extent) for loop in self._nest.threads)
        words = int(self.tile.shape[0])
        again = tirx.Var("again", "int32")
        word = again * threads + self._thread(new)
        store = self._stored_words(word, [tirx.const(0, self.tile.dtype)] * PAIR)
        store = tirx.IfThenElse(word < words, store, None)
        return tirx.For(again, _number(0), _number(-(-words // threads)), tirx.ForKind.SERIAL, store, None, {})


def _sequence(parts: list[Any]) -> Any:
    return parts[0] if len(parts) == 1 else tirx.SeqStmt(parts)


def _number(value: int) -> Any:
    return tirx.const(value, "int32")


def _nested(
    chunks: tirx.For, chunk: Any, loops: list[tirx.For], statement: Callable[[list[tuple[Any, Any]]], Any]
) -> Any:
    """A statement in loops like these with variables of their own, a list of old and new ones; if there is a chunk."""
    new = [(loop.loop_var, tirx.Var(loop.loop_var.name, "int32")) for loop in loops]
    inner = _block(tirx.IfThenElse(chunk < chunks.extent, statement(new), None))
    for loop, (_, var) in zip(reversed(loops), reversed(new), strict=True):
        inner = tirx.For(var, loop.min, loop.extent, loop.kind, inner, loop.thread_binding, {})
    return inner


def _block(statement: Any) -> Any:
    """A statement as a block without variables."""
    return s_tir.SBlockRealize([], tirx.const(True, "bool"), s_tir.SBlock([], [], [], "copies", statement))


def _call(instruction: str, *args: Any) -> Any:
    return _block(tirx.Evaluate(T.ptx[instruction](*args)))


def _barrier() -> Any:
    return _block(tirx.Evaluate(T.tvm_storage_sync("shared")))


def _put(expression: Any, values: list[tuple[Any, Any]]) -> Any:
    """An expression with values in the place of variables."""

    def put(var: tirx.Var) -> Any:
        return next((value for old, value in values if var.same_as(old)), var)

    return tvm_ffi.structural_map(expression, (tirx.Var, put), order="post")


def _conditional(value: Any) -> tuple[Any, Any]:
    """The test of `if_then_else(test, element, 0)` and the element; of an element alone, that it is there."""
    if isinstance(value, tvm.ir.Call):
        test, element, _ = value.args
        return test, element
    return tirx.const(True, "bool"), value


def _widened(element: Any, width: int) -> Any:
    """The load of `width` neighbours."""
    if not isinstance(element, tvm.ir.TensorLoad):  # zero: no image has anything there
        return _zeros(str(element.ty.dtype), width)
    *outer, last = element.indices
    return tirx.BufferLoad(element.source, [*outer, _run(last, width)])


def _zeros(dtype: Any, width: int) -> Any:
    zero = tirx.const(0, dtype)
    return zero if width == 1 else tirx.Broadcast(zero, width)


def _run(first: Any, width: int) -> Any:
    return first if width == 1 else tirx.Ramp(first, 1, width)
