"""Check and time one compiled operator and its peer."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from benchmarks.gpu_layers.timing import COPIES, Timer
from benchmarks.gpu_operators.cases import Operator

#: An H200's float32 multiply-adds and measured copy bandwidth.
PEAK_TFLOPS, PEAK_TB_PER_S = 60.0, 4.3
#: Relative error against float64.
TOLERANCE = 1e-5
#: Weights from which on a layer is timed with a cold L2 cache too: between other layers it finds them in memory.
COLD_FROM = 1_000_000


@dataclass
class Row:
    """One operator at one batch; times in microseconds, NaN where there is none."""

    operator: str
    batch: int
    ours_us: float = float("nan")
    cold_us: float = float("nan")
    peer_us: float = float("nan")
    peer_cold_us: float = float("nan")
    bound_us: float = float("nan")
    error: float = float("nan")
    kernels: int = 0
    note: str = ""

    def __str__(self) -> str:
        return (
            f"{self.operator:18} {self.batch:3} ours {self.ours_us:8.2f} cold {self.cold_us:7.2f}  peer "
            f"{self.peer_us:8.2f} cold {self.peer_cold_us:7.2f} {self.peer_us / self.ours_us:5.2f}x"
            f" bound {self.bound_us:7.2f} {self.bound_us / self.ours_us:4.0%} err {self.error:.0e}"
            f" k{self.kernels} {self.note}"
        )


def measure(row: Row, operator: Operator, library: str, timer: Timer, device: str, peers: bool) -> None:
    """Fill in a row; an operator that is wrong gets no time.

    Parameters
    ----------
    device : of torch, "cuda" or "cpu"
    peers : whether to time torch too
    """
    import torch
    import tvm
    from tvm import relax

    generator = torch.Generator(device=device).manual_seed(0)
    shape = (row.batch, *operator.shape)
    inputs = [torch.randn(shape, generator=generator, device=device) for _ in range(COPIES)]
    weights = {name: torch.from_numpy(array).to(device) for name, array in operator.arrays().items()}
    machine = relax.VirtualMachine(tvm.runtime.load_module(library), tvm.runtime.device(device))
    main, arguments = machine["main"], [tvm.runtime.from_dlpack(x) for x in inputs]
    outputs: list[Any] = [None] * COPIES

    def launch(i: int) -> None:
        outputs[i % COPIES] = main(arguments[i % COPIES])

    main(tvm.runtime.from_dlpack(torch.full(shape, float("nan"), device=device)))  # its output's memory is used again
    y = torch.from_dlpack(main(arguments[0])).double()
    expected = operator.torch(torch, inputs[0].double(), {name: w.double() for name, w in weights.items()}, True)
    row.error = float((y - expected).norm() / expected.norm())
    moved = 4 * (prod(shape) + y.numel() + sum(w.numel() for w in weights.values()))
    flops = 2 * operator.multiply_adds * row.batch
    row.bound_us = max(flops / PEAK_TFLOPS / 1e6, moved / PEAK_TB_PER_S / 1e6)
    del y, expected
    if not row.error <= TOLERANCE:
        row.note = f"WRONG {row.note}"
        return
    cold = max((w.numel() for w in weights.values()), default=0) >= COLD_FROM
    timing = timer.time(launch)
    row.ours_us = timing.median_us
    if timing.method != "graph":
        row.note += f" (timed by {timing.method}: the host's time is in it)"
    if cold:
        row.cold_us = timer.time_cold(launch).median_us
    if peers:
        from tvm_sparse.peers.torch_forms import precision_flags

        with precision_flags(tf32=False):
            row.peer_us, row.peer_cold_us = _peer(operator, inputs, weights, timer, cold)


def _peer(
    operator: Operator, inputs: list[Any], weights: dict[str, Any], timer: Timer, cold: bool
) -> tuple[float, float]:
    """Times of torch's kernel in the faster of two layouts: warm, and with a cold cache if that is wanted."""
    import torch

    found = []
    layouts = ("contiguous_format", "channels_last") if operator.multiply_adds and inputs[0].dim() == 4 else None
    for layout in layouts or ("contiguous_format",):
        memory_format = getattr(torch, layout)
        own = [x.to(memory_format=memory_format, copy=True) for x in inputs]
        filters = {name: w.to(memory_format=memory_format) if w.dim() == 4 else w for name, w in weights.items()}
        kept: list[Any] = [None] * COPIES

        def launch(i: int, own: Any = own, filters: Any = filters, kept: Any = kept) -> None:
            kept[i % COPIES] = operator.torch(torch, own[i % COPIES], filters, False)

        found.append((timer.time(launch).median_us, timer.time_cold(launch).median_us if cold else float("nan")))
    return min(found)
