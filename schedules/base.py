"""What every template has: a name, a test, a search space, a default, and a schedule."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.target import Target

from tvm_sparse.compute.direct_conv import DirectConv, direct_conv2d
from tvm_sparse.compute.geometry import Tiling
from tvm_sparse.compute.packed_filter import pack_filter, stage_filter
from tvm_sparse.compute.pair_tiling import PairTiling
from tvm_sparse.errors import InputError
from tvm_sparse.formats import ColumnVectorFilter, CSRFilter, SlicedELLFilter, SparseFilter
from tvm_sparse.workload import ConvWorkload

#: The choices of one schedule: plain values, so that a log can hold them.
Knobs = Mapping[str, int | str]
#: Indices are int32, those of a rounded-up last tile or block of threads too.
MOST_ELEMENTS = 2**31 - 2**20


class FilterConstants(Protocol):
    """What a kernel takes of the filter: a PackedFilter, or nothing where the filter is in its code."""

    @property
    def arrays(self) -> tuple[NDArray, ...]: ...

    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True)
class Kernel:
    """One scheduled convolution: a PrimFunc (x, *constants, [bias], [residual], out) and the constants it takes."""

    workload: ConvWorkload
    template: str
    knobs: dict[str, int | str]
    func: tirx.PrimFunc = field(repr=False)
    constants: FilterConstants = field(repr=False)


class Template(ABC):
    """One way to run a direct sparse convolution. A schedule reads shapes, never weights."""

    name: str

    @abstractmethod
    def applies(self, workload: ConvWorkload, target: Target) -> str | None:
        """None when this template can run the workload on the target, otherwise why not."""

    def too_much(self, workload: ConvWorkload, density: float) -> str | None:
        """None when a filter of this density is not too much for the template, otherwise why and what to do."""
        return None

    @abstractmethod
    def space(self, workload: ConvWorkload, target: Target) -> dict[str, tuple[int | str, ...]]:
        """Every knob with the values worth trying, those that change the packed format among them."""

    @abstractmethod
    def default(self, workload: ConvWorkload, density: float, target: Target) -> dict[str, int | str]:
        """Sensible knobs for a layer that was never tuned."""

    def smaller(self, workload: ConvWorkload, knobs: Knobs) -> dict[str, int | str] | None:
        """Knobs that ask less of the target, where a filter makes the default ask too much; None if there are none."""
        return None

    def estimate_us(self, workload: ConvWorkload, density: float, knobs: Knobs, target: Target) -> float | None:
        """Microseconds that these knobs should take, by rule; infinite where they do not fit, None without a rule."""
        return None

    @abstractmethod
    def tiling(self, workload: ConvWorkload, knobs: Knobs) -> Tiling | PairTiling:
        """How these knobs cut pixels and channels."""

    #: Whether row blocks that are scheduled together have their nonzeros staged together.
    stages_filter = False

    def row_block_multiple(self, knobs: Knobs) -> int:
        """Row blocks that are scheduled together; empty ones are added up to a multiple of this."""
        return 1

    def chunk_dtype(self, knobs: Knobs) -> str:
        """In which a row's nonzeros in a chunk are summed."""
        return "float32"

    def row_order(self, workload: ConvWorkload, weight: NDArray, knobs: Knobs) -> NDArray[np.int32] | None:
        """The order, (k,), in which the rows of this filter should stand; None to leave them."""
        return None

    @abstractmethod
    def schedule(self, conv: DirectConv, tiling: Any, knobs: Knobs, target: Target) -> tirx.PrimFunc:
        """Map the expression, over a tiling of this template, to the machine."""

    def kernel(
        self,
        workload: ConvWorkload,
        weight: NDArray,
        target: Target,
        knobs: Knobs | None = None,
        density: float | None = None,
    ) -> Kernel:
        """Pack `weight` (k, c/groups, r, s) and schedule its convolution; `knobs` complete or None for the default.

        The default is that of `density`, or of the weight's own.

        Raises
        ------
        InputError
            When the filter is not the workload's, the template does not apply, the filter is too much for it, or a
            knob is missing or unknown.
        """
        chosen = self.checked_knobs(workload, weight, target, knobs, density)
        while True:
            try:
                return self._kernel(workload, weight, target, chosen)
            except InputError:
                fewer = self.smaller(workload, chosen) if knobs is None else None
                if fewer is None:
                    raise
                chosen = fewer

    def _kernel(self, workload: ConvWorkload, weight: NDArray, target: Target, chosen: dict[str, int | str]) -> Kernel:
        tiling = self.tiling(workload, chosen)
        pad_to = int(chosen.get("pad_to", 1))
        order = self.row_order(workload, weight, chosen)
        rows = weight if order is None else weight[order]
        stream = make_format(rows, str(chosen["format"])).stream(tiling.channels, pad_to)
        together = self.row_block_multiple(chosen)
        packed = pack_filter(stream, tiling, pad_to, together)
        constants = stage_filter(packed, together, order) if self.stages_filter else packed
        conv = direct_conv2d(tiling, constants, self.chunk_dtype(chosen))
        func = self.schedule(conv, tiling, chosen, target)
        return self.finished(workload, chosen, func, constants)

    def checked_knobs(
        self,
        workload: ConvWorkload,
        weight: NDArray,
        target: Target,
        knobs: Knobs | None,
        density: float | None = None,
    ) -> dict[str, int | str]:
        """All knobs for this filter, after the checks that need no schedule: see `kernel`."""
        if weight.shape != workload.filter_shape:
            raise InputError(f"{workload}: the filter has shape {weight.shape}, expected {workload.filter_shape}")
        if reason := too_large(workload) or self.applies(workload, target):
            raise InputError(f"{workload}: template {self.name} does not apply: {reason}")
        own = float((weight != 0).mean())
        if reason := self.too_much(workload, own):
            raise InputError(f"{workload}: {reason}")
        chosen = dict(self.default(workload, own if density is None else density, target) if knobs is None else knobs)
        if set(chosen) != set(self.space(workload, target)):
            raise InputError(
                f"template {self.name} takes the knobs {sorted(self.space(workload, target))}, not {sorted(chosen)}"
            )
        return chosen

    def finished(
        self, workload: ConvWorkload, knobs: dict[str, int | str], func: tirx.PrimFunc, constants: FilterConstants
    ) -> Kernel:
        """A scheduled function as a kernel."""
        # "is_scheduled" keeps dlight off it; pattern 8 (opaque) keeps fusion off it, which would crash (TVM 0.27).
        func = func.with_attr({"tirx.is_scheduled": True, "op_pattern": 8})
        return Kernel(workload, self.name, knobs, func, constants)


def too_large(workload: ConvWorkload) -> str | None:
    """Which array of a workload has more elements than an int32 index can reach, or None."""
    arrays = {
        "input": (workload.n, workload.c, workload.h, workload.w),
        "output": (workload.n, workload.k, workload.p, workload.q),
    }
    for name, shape in arrays.items():
        if math.prod(shape) > MOST_ELEMENTS:
            return f"the {name} has more than {MOST_ELEMENTS} elements"
    return None


def make_format(weight: NDArray, text: str) -> SparseFilter:
    """The sparse format a knob names: "csr", "sliced_ell:HEIGHT" or "column_vector:V"."""
    kind, _, size = text.partition(":")
    if kind == "csr":
        return CSRFilter.from_dense(weight)
    if kind == "sliced_ell":
        return SlicedELLFilter.from_dense(weight, int(size))
    if kind == "column_vector":
        return ColumnVectorFilter.from_dense(weight, int(size))
    raise InputError(f"unknown format {text!r}: choose csr, sliced_ell:HEIGHT or column_vector:V")


def closest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit` (and at least 1)."""
    return next(d for d in range(max(1, min(number, limit)), 0, -1) if number % d == 0)
