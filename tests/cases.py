"""Random convolutions, drawn by hypothesis or from a seed: the same for the CPU tests and for the GPU campaign."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from tvm_sparse import oracle
from tvm_sparse.workload import ConvWorkload, Epilogue

T = TypeVar("T")
Choose = Callable[[Sequence[T]], T]

#: Largest relative error against float64, by the dtype of the data.
TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
FORMATS = ("csr", "sliced_ell:8", "column_vector:2", "column_vector:4")
DENSITIES = (0.0, 0.02, 0.1, 0.1, 0.3, 0.6, 1.0)
#: Nothing, each activation, and bias or residual with and without one.
EPILOGUES = tuple(
    Epilogue(bias, residual, activation, (-0.5, 1.5) if activation == "clip" else ())
    for activation in (None, "relu", "relu6", "clip", "silu", "hard_swish")
    for bias, residual in ((False, False), (True, False), (True, True), (False, True))
)


@dataclass(frozen=True)
class Case:
    """One convolution with its data: weights of a density, some rows or channels emptied, drawn from `seed`."""

    workload: ConvWorkload
    density: float
    emptied: str
    seed: int

    def weight(self) -> np.ndarray:
        """(k, c/groups, r, s), scaled so that outputs are about 1."""
        rng = np.random.default_rng(self.seed)
        shape = self.workload.filter_shape
        weight = rng.standard_normal(shape) / np.sqrt(max(1.0, self.density * np.prod(shape[1:])))
        weight *= rng.random(shape) < self.density
        if "rows" in self.emptied:
            weight[rng.random(shape[0]) < 0.4] = 0
        if "channels" in self.emptied:
            weight[:, rng.random(shape[1]) < 0.6] = 0
        return weight.astype(self.workload.dtype)

    def inputs(self) -> dict[str, np.ndarray]:
        """x and, if the epilogue has them, bias and residual."""
        rng = np.random.default_rng(self.seed + 1)
        workload = self.workload
        shapes: dict[str, tuple[int, ...]] = {"x": (workload.n, workload.c, workload.h, workload.w)}
        if workload.epilogue.bias:
            shapes["bias"] = (workload.k,)
        if workload.epilogue.residual:
            shapes["residual"] = (workload.n, workload.k, workload.p, workload.q)
        return {name: rng.standard_normal(shape).astype(workload.dtype) for name, shape in shapes.items()}

    def poisoned_output(self) -> np.ndarray:
        """The output before a kernel ran: all NaN."""
        workload = self.workload
        return np.full((workload.n, workload.k, workload.p, workload.q), np.nan, workload.dtype)

    def error(self, y: np.ndarray) -> float:
        """Relative error of an output of these inputs against float64."""
        return oracle.relative_error(y, reference(self.workload, self.weight(), self.inputs()))

    def wrong(self, y: np.ndarray) -> str | None:
        """What is wrong with an output, or None."""
        error, allowed = self.error(y), TOLERANCE[self.workload.dtype]
        return None if error <= allowed else f"{self}: relative error {error:.2e}, {allowed:g} allowed"

    def __str__(self) -> str:
        text = f"{self.workload} epilogue {self.workload.epilogue} density {self.density:g} seed {self.seed}"
        return text + (f" emptied {self.emptied}" if self.emptied else "")


def reference(workload: ConvWorkload, weight: np.ndarray, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """The float64 result of a workload with its epilogue."""
    epilogue = workload.epilogue
    activation: Any = ("clip", *epilogue.bounds) if epilogue.activation == "clip" else epilogue.activation
    return oracle.conv2d(
        inputs["x"],
        weight,
        bias=inputs.get("bias"),
        residual=inputs.get("residual"),
        stride=workload.stride,
        padding=workload.padding,
        dilation=workload.dilation,
        groups=workload.groups,
        activation=activation,
    )


def choose_case(choose: Choose, dtype: str = "float32") -> Case:
    """A case out of choices: odd sizes, both strides, all four paddings, dilation, groups, 1-D, pointwise, 1 pixel."""
    kind = choose(("plain", "plain", "plain", "pointwise", "1-D", "grouped", "depthwise"))
    r = s = 1
    stride, padding, dilation = (1, 1), (0, 0, 0, 0), (1, 1)
    if kind != "pointwise":
        r = 1 if kind == "1-D" else choose((1, 2, 3, 3, 5, 7))
        s = choose((1, 2, 3, 3, 4, 7, 11))
        stride = (1 if kind == "1-D" else choose((1, 1, 2, 3)), choose((1, 1, 2, 4)))
        dilation = (1 if r == 1 else choose((1, 1, 2)), choose((1, 1, 3)))
        vertical = (0, 0) if kind == "1-D" else (choose((0, 0, 1, 2, 3)), choose((0, 1, 2)))
        padding = (vertical[0], choose((0, 1, 1, 3)), vertical[1], choose((0, 1, 2)))
    h = 1 if kind == "1-D" else choose((1, 2, 5, 7, 9, 14, 17)) + max(0, (r - 1) * dilation[0] - sum(padding[::2]))
    w = choose((1, 3, 7, 8, 13, 14, 28, 35)) + max(0, (s - 1) * dilation[1] - padding[1] - padding[3])

    groups = {"grouped": choose((2, 3, 4)), "depthwise": choose((1, 2, 5, 16))}.get(kind, 1)
    c = groups * (1 if kind == "depthwise" else choose((1, 2, 3, 4, 5, 8, 13, 16, 33)))
    k = groups * choose((1, 2, 3, 4, 5, 8, 10, 16, 33))
    workload = ConvWorkload(
        choose((1, 1, 2, 3, 4)), c, h, w, k, r, s, stride, padding, dilation, groups, dtype, choose(EPILOGUES)
    )
    if kind == "pointwise" and choose((True, False)):
        workload = workload.flattened()
    emptied = choose(("", "", "rows", "channels", "rows and channels"))
    return Case(workload, choose(DENSITIES), emptied, choose(range(999)))


def seeded(seed: int, count: int, dtype: str = "float32") -> list[Case]:
    """`count` cases from a seed."""
    choose = seeded_choose(seed)
    return [choose_case(choose, dtype) for _ in range(count)]


def seeded_choose(seed: int) -> Choose:
    """A function that picks one of a sequence, from a seed."""
    rng = np.random.default_rng(seed)
    return lambda options: options[int(rng.integers(len(options)))]


def cases(dtype: str = "float32") -> Any:
    """A hypothesis strategy for cases of a dtype."""
    from hypothesis import strategies as st

    return st.composite(lambda draw: choose_case(lambda options: draw(st.sampled_from(options)), dtype))()


def choose_knobs(choose: Choose, space: dict[str, tuple[int | str, ...]]) -> dict[str, int | str]:
    """One value for every knob."""
    return {name: choose(values) for name, values in space.items()}
