"""The description of one convolution layer: the key of schedules, caches and logs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tvm_sparse.errors import InputError

ACTIVATIONS = ("relu", "relu6", "clip", "silu", "hard_swish")

#: Bytes of an element, of the dtypes that GPU templates store.
ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Epilogue:
    """What is fused behind the convolution, in this order: bias, residual add, activation.

    `bounds` are the two limits of the activation "clip" and empty for every other one.
    """

    bias: bool = False
    residual: bool = False
    activation: str | None = None
    bounds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.activation is not None and self.activation not in ACTIVATIONS:
            raise InputError(f"unknown activation {self.activation!r}: choose one of {', '.join(ACTIVATIONS)}")
        if (len(self.bounds) == 2) != (self.activation == "clip"):
            raise InputError(f"activation {self.activation!r} with bounds {self.bounds}: clip takes two, others none")

    def __str__(self) -> str:
        activation = self.activation if not self.bounds else f"clip({self.bounds[0]:g},{self.bounds[1]:g})"
        parts = ("bias" if self.bias else "", "residual" if self.residual else "", activation or "")
        return "+".join(part for part in parts if part) or "none"


@dataclass(frozen=True)
class ConvWorkload:
    """One 2-D convolution: x (n, c, h, w) * filter (k, c/groups, r, s) -> y (n, k, p, q). A 1-D one has h = r = 1.

    `padding` is (top, left, bottom, right); `dtype` is that of x, the filter and y; sums are float32.

    Raises
    ------
    InputError
        When the shape has no output pixel or the groups do not divide c and k.
    """

    n: int
    c: int
    h: int
    w: int
    k: int
    r: int
    s: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    dtype: str = "float32"
    epilogue: Epilogue = Epilogue()

    def __post_init__(self) -> None:
        sizes = (self.n, self.c, self.h, self.w, self.k, self.r, self.s, *self.stride, *self.dilation, self.groups)
        if min(sizes) < 1 or min(self.padding) < 0:
            raise InputError(f"convolution {self}: sizes, stride, dilation and groups are 1 or more, padding 0 or more")
        if self.c % self.groups or self.k % self.groups:
            raise InputError(f"convolution {self}: {self.groups} groups do not divide {self.c} and {self.k} channels")
        if self.p < 1 or self.q < 1:
            raise InputError(f"convolution {self}: the kernel is larger than the padded input")

    @property
    def p(self) -> int:
        """Rows of the output."""
        top, _, bottom, _ = self.padding
        return (self.h + top + bottom - self.dilation[0] * (self.r - 1) - 1) // self.stride[0] + 1

    @property
    def q(self) -> int:
        """Columns of the output."""
        _, left, _, right = self.padding
        return (self.w + left + right - self.dilation[1] * (self.s - 1) - 1) // self.stride[1] + 1

    @property
    def c_per_group(self) -> int:
        return self.c // self.groups

    @property
    def k_per_group(self) -> int:
        return self.k // self.groups

    @property
    def filter_shape(self) -> tuple[int, int, int, int]:
        return self.k, self.c_per_group, self.r, self.s

    @property
    def macs(self) -> int:
        """Multiply-adds of the dense convolution."""
        return self.n * self.k * self.p * self.q * self.c_per_group * self.r * self.s

    @property
    def pointwise(self) -> bool:
        """Every output pixel reads exactly the input pixel at its own place."""
        return (self.r, self.s) == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0, 0, 0)

    def flattened(self) -> ConvWorkload:
        """The same arithmetic on the same memory, with the pixels of a pointwise convolution as one row.

        Tiles of a flattened workload do not break at the right edge of every row.
        """
        return replace(self, h=1, w=self.h * self.w) if self.pointwise else self

    def __str__(self) -> str:
        text = f"n{self.n} {self.c}x{self.h}x{self.w} -> {self.k} {self.r}x{self.s}"
        if self.stride != (1, 1):
            text += f" stride {self.stride[0]}x{self.stride[1]}"
        if any(self.padding):
            text += " padding " + ",".join(map(str, self.padding))
        if self.dilation != (1, 1):
            text += f" dilation {self.dilation[0]}x{self.dilation[1]}"
        if self.groups != 1:
            text += f" groups {self.groups}"
        return text
