"""A chunk of two images' channels on its way to shared memory: held in registers, then stored as pairs.

Either place by place, with a test each, or in whole rows as they lie in memory (`plane_copies`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.backend.cuda.op import cuda_func_call
from tvm.script import tirx as T

from tvm_sparse.compute.pair_tiling import PAIR
from tvm_sparse.schedules.blocks import substituted
from tvm_sparse.schedules.copy_loops import Nest, conditional, integer, nested, ramp, widened, zero
from tvm_sparse.schedules.plane_copies import WIDTH, PlaneCopies
from tvm_sparse.tvm_support.statements import in_sequence

#: Words that are stored at once: TVM's CUDA has vectors of four 16-bit elements.
WORDS_AT_ONCE = 2
#: How CUDA calls an element.
ELEMENT = {"float16": "half", "bfloat16": "nv_bfloat16"}


class Copies(ABC):
    """Both halves of the copies, loads and stores, in the loop over `chunks`."""

    def __init__(self, nest: Nest, tile: Any, chunks: tirx.For, held: tuple[int, ...]) -> None:
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


class PlaceByPlace(Copies):
    """Copies place by place, as the marked loops make them: of `width` neighbours of both images."""

    def __init__(self, nest: Nest, tile: Any, chunks: tirx.For) -> None:
        *self._around, self._element, self._pair = nest.loops
        self._width = int(self._element.extent)
        self._again = [loop for loop in self._around if loop.thread_binding is None]
        super().__init__(nest, tile, chunks, (*(int(loop.extent) for loop in self._again), PAIR, self._width))

    def loads(self, chunk: Any) -> Any:
        def load(new: list[tuple[Any, Any]]) -> Any:
            at = [substituted(loop.loop_var, new) for loop in self._again]
            tests, loads, zeros = [], [], []
            for image in range(PAIR):
                value = substituted(self._nest.value, self._of(chunk, new, image))
                test, element = conditional(value)
                place = [*at, image, ramp(0, self._width)]
                tests.append(test)
                loads.append(tirx.BufferStore(self.held, widened(element, self._width), place))
                zeros.append(tirx.BufferStore(self.held, zero(self.held.dtype, self._width), place))
            if tvm_ffi.structural_equal(*tests):
                tests, loads, zeros = tests[:1], [tirx.SeqStmt(loads)], [tirx.SeqStmt(zeros)]
            parts = [tirx.IfThenElse(*each) for each in zip(tests, loads, zeros, strict=True)]
            return self._guarded(chunk, new, in_sequence(parts))

        return nested(self._chunks, chunk, self._around, load)

    def stores(self, chunk: Any) -> Any:
        def store(new: list[tuple[Any, Any]]) -> Any:
            at = [substituted(loop.loop_var, new) for loop in self._again]
            word = substituted(self._nest.place[5], self._of(chunk, new))
            run = min(self._width, WORDS_AT_ONCE)
            parts = [
                self._stored(word + first, at, list(range(first, first + run))) for first in range(0, self._width, run)
            ]
            return self._guarded(chunk, new, in_sequence(parts))

        return nested(self._chunks, chunk, self._around, store)

    def _of(self, chunk: Any, new: list[tuple[Any, Any]], image: int = 0) -> list[tuple[Any, Any]]:
        """What stands for the variables of the nest in the first element of a copy."""
        loops = (self._chunks, chunk), (self._element, integer(0)), (self._pair, integer(image))
        return [*new, *((loop.loop_var, value) for loop, value in loops)]

    def _guarded(self, chunk: Any, new: list[tuple[Any, Any]], statement: Any) -> Any:
        inside = substituted(self._nest.inside, self._of(chunk, new))
        return tirx.IfThenElse(inside, statement, None)


class PlaneByPlane(Copies):
    """Copies plane by plane as `planes` says, on a tile that is zero around the images."""

    def __init__(self, nest: Nest, tile: Any, chunks: tirx.For, planes: PlaneCopies) -> None:
        super().__init__(nest, tile, chunks, (planes.steps, PAIR, WIDTH))
        self._planes = planes

    def cleared(self) -> list[Any]:
        return [nested(self._chunks, integer(0), self._nest.threads, self._zeros)]

    def loads(self, chunk: Any) -> Any:
        return self._steps(chunk, self._load)

    def stores(self, chunk: Any) -> Any:
        return self._steps(chunk, self._store)

    def _steps(self, chunk: Any, of_step: Callable[[Any, Any, int], Any]) -> Any:
        def steps(new: list[tuple[Any, Any]]) -> Any:
            parts = [of_step(chunk, self._thread(new), step) for step in range(self._planes.steps)]
            return in_sequence(parts)

        return nested(self._chunks, chunk, self._nest.threads, steps)

    def _thread(self, new: list[tuple[Any, Any]]) -> Any:
        number = integer(0)
        for loop, (_, var) in zip(self._nest.threads, new, strict=True):
            number = number * loop.extent + var
        return number

    def _load(self, chunk: Any, thread: Any, step: int) -> Any:
        inside, image, channel, element = self._inside(chunk, thread, step)
        tiling = self._planes.tiling
        _, element_of_x = conditional(self._nest.value)
        x, group = element_of_x.source, self._nest.place[1]
        image = (self._nest.place[0] * tiling.words.images + image) * PAIR
        channel = group * tiling.workload.c_per_group + chunk * tiling.channels + channel
        plane, row, col = self._planes.source(element)
        row = self._planes.first_row(self._nest.place[2]) + row
        loads, zeros = [], []
        for n in range(PAIR):
            loaded = tirx.BufferLoad(x, [image + n, channel + plane, row, ramp(col, WIDTH)])
            place = [integer(step), integer(n), ramp(integer(0), WIDTH)]
            loads.append(tirx.BufferStore(self.held, loaded, place))
            zeros.append(tirx.BufferStore(self.held, zero(self.held.dtype, WIDTH), place))
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
            parts.append(self._stored(word, [integer(step)], list(range(first, first + run))))
        return tirx.IfThenElse(inside, in_sequence(parts), None)

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
        return tirx.For(again, integer(0), integer(-(-words // threads)), tirx.ForKind.SERIAL, store, None, {})
