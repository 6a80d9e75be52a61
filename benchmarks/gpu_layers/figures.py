"""The figures of docs/gpu-performance.md as SVG, from the record. The same record gives the same bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape

from benchmarks.gpu_layers.layers import REFERENCE
from benchmarks.gpu_layers.report import Report, crossing, ratios
from benchmarks.gpu_layers.tables import CUDNN, PEERS, SPARSITY

COLOURS = ("#1b6ca8", "#e08e0b", "#5a9e3d")
BATCHES = (1, 32)
FRAME, LABEL = "#888", 'font-family="sans-serif" font-size="11"'


class Drawing:
    """Collects SVG elements; lengths in pixels, y downwards."""

    def __init__(self, width: float, height: float) -> None:
        self._size = f"{width:g} {height:g}"
        self._elements: list[str] = [f'<rect width="{width:g}" height="{height:g}" fill="white"/>']

    def rect(self, x: float, y: float, width: float, height: float, fill: str) -> None:
        self._elements.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}"/>'
        )

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float = 1) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._elements.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"/>')

    def circle(self, x: float, y: float, colour: str) -> None:
        self._elements.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="none" stroke="{colour}"/>')

    def text(self, x: float, y: float, text: str, anchor: str = "middle", turn: int = 0) -> None:
        turned = f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn else ""
        self._elements.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {LABEL}{turned}>{escape(text)}</text>'
        )

    def svg(self) -> str:
        body = "\n".join(self._elements)
        return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self._size}">\n{body}\n</svg>\n'


class Panel:
    """An axis of speed-ups, logarithmic, with a heavier line at 1; `powers` of two are its least and its greatest."""

    def __init__(
        self, drawing: Drawing, x: float, y: float, width: float, height: float, powers: tuple[int, int]
    ) -> None:
        self.x, self.y, self.width, self.height = x, y, width, height
        self.low, self.high = powers
        for power in range(self.low, self.high + 1):
            level = self.level(2.0**power)
            drawing.line([(x, level), (x + width, level)], "#444" if power == 0 else "#ddd", 1.5 if power == 0 else 1)
            drawing.text(x - 4, level + 4, f"{2.0**power:g}x", "end")

    def level(self, ratio: float) -> float:
        """The y of a speed-up."""
        return self.y + self.height * (self.high - math.log2(ratio)) / (self.high - self.low)


def powers_around(speed_ups: Iterable[float]) -> tuple[int, int]:
    """The powers of two that enclose all speed-ups, and 0.5 and 2."""
    logarithms = [math.log2(ratio) for ratio in speed_ups]
    return math.floor(min([-1.0, *logarithms])), math.ceil(max([1.0, *logarithms]))


def speed_ups(report: Report) -> str | None:
    """Bars: how many times faster than cuDNN each reference layer is, at batch 1 and 32; None without any."""
    panels = [(batch, report.reference(REFERENCE, batch, SPARSITY)) for batch in BATCHES]
    panels = [(batch, cases) for batch, cases in panels if any(case.ratio(peer) for case in cases for peer in CUDNN)]
    if not panels:
        return None
    powers = powers_around(ratio for _, cases in panels for peer in CUDNN for ratio in ratios(cases, peer))
    drawing = Drawing(940, 40 + 310 * len(panels))
    _legend(drawing, [f"over {PEERS[peer]}" for peer in CUDNN])
    for number, (batch, cases) in enumerate(panels):
        panel = Panel(drawing, 60, 60 + 310 * number, 860, 200, powers)
        drawing.text(60, panel.y - 10, f"batch {batch}, {SPARSITY:.0%} zeros, float32", "start")
        slot = panel.width / len(REFERENCE)
        for case in cases:
            left = panel.x + slot * REFERENCE.index(case.record["layer"]) + 0.1 * slot
            for index, peer in enumerate(CUDNN):
                if ratio := case.ratio(peer):
                    one, level = panel.level(1), panel.level(ratio)
                    x = left + index * 0.27 * slot
                    drawing.rect(x, min(one, level), 0.25 * slot, max(abs(one - level), 0.5), COLOURS[index])
            drawing.text(left + 0.4 * slot, panel.y + panel.height + 14, case.record["layer"], "end", -30)
    return drawing.svg()


def crossovers(report: Report) -> str | None:
    """Small panels: the speed-up over cuDNN float32 by sparsity, one a reference layer; None without any."""
    panels = []
    for name in REFERENCE:
        curves = [
            sorted(
                (case.record["sparsity"], ratio)
                for case in report.measured(layer=name, batch=batch, dtype="float32", mask="random")
                if (ratio := case.ratio("cudnn_fp32")) is not None
            )
            for batch in BATCHES
        ]
        if any(len(curve) > 1 for curve in curves):
            panels.append((name, curves))
    if not panels:
        return None
    columns = 4
    powers = powers_around(ratio for _, curves in panels for curve in curves for _, ratio in curve)
    drawing = Drawing(columns * 235 + 10, 40 + 210 * -(-len(panels) // columns))
    _legend(drawing, [f"batch {batch}, over {PEERS['cudnn_fp32']}" for batch in BATCHES])
    for number, (name, curves) in enumerate(panels):
        panel = Panel(drawing, 45 + 235 * (number % columns), 60 + 210 * (number // columns), 185, 140, powers)
        drawing.text(panel.x + panel.width / 2, panel.y - 8, name)
        for sparsity in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
            drawing.text(_across(panel, sparsity), panel.y + panel.height + 14, f"{sparsity:.0%}")
        for curve, colour in zip(curves, COLOURS, strict=False):
            drawing.line([(_across(panel, z), panel.level(ratio)) for z, ratio in curve], colour, 2)
            if found := crossing(curve):
                drawing.circle(_across(panel, found), panel.level(1), colour)
    return drawing.svg()


def _across(panel: Panel, sparsity: float) -> float:
    return panel.x + panel.width * (sparsity - 0.5) / 0.5


def _legend(drawing: Drawing, names: Sequence[str]) -> None:
    for index, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        drawing.rect(60 + 260 * index, 14, 12, 12, colour)
        drawing.text(78 + 260 * index, 24, name, "start")


#: By file name in docs/, with what a reader who does not see it is told.
FIGURES: dict[str, tuple[str, Callable[[Report], str | None]]] = {
    "gpu-speed-ups.svg": ("Speed-up of each reference layer over cuDNN", speed_ups),
    "gpu-crossovers.svg": ("Speed-up over cuDNN float32 by the share of zeros", crossovers),
}
