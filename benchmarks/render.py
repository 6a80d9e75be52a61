"""Write the recorded figures into README.md and docs/: no number there is typed by hand.

python -m benchmarks.render            rewrite the text between the markers
python -m benchmarks.render --check    exit 1 if a file does not say what the records say
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu_layers import tables as gpu_tables
from benchmarks.gpu_layers.figures import FIGURES as GPU_FIGURES
from benchmarks.gpu_layers.report import Report
from benchmarks.gpu_layers.steps import BLOCKS as GPU_STEPS
from benchmarks.gpu_networks.report import Report as NetworksReport
from benchmarks.gpu_networks.tables import BLOCKS as GPU_NETWORKS
from benchmarks.gpu_operators.tables import BLOCKS as GPU_OPERATORS
from benchmarks.gpu_serving import serving
from benchmarks.markdown import NOTHING
from benchmarks.records import RESULTS
from benchmarks.tuned_networks import tuned_networks
from benchmarks.tuning_trials import BLOCKS as TUNING_TRIALS

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("performance.md", "gpu-performance.md", "gpu-networks.md", "tuning.md")
DOCUMENTS = (ROOT / "README.md", *(ROOT / "docs" / page for page in PAGES))

_MARKED = re.compile(r"(<!-- begin: (?P<name>[\w-]+) -->\n).*?(<!-- end: (?P=name) -->)", re.DOTALL)


def cpu_networks() -> str:
    """Whole networks on a CPU, from benchmarks/results/cpu_networks.json."""
    report = json.loads((RESULTS / "cpu_networks.json").read_text())
    lines = [
        "| network | zeros | onnxruntime, dense | ours, all dense | ours, sparse | sparse over onnxruntime |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['network']} | {r['sparsity']:.0%} | {r['onnxruntime_ms']:.1f} ms | {r['dense_ms']:.1f} ms "
        f"| {r['sparse_ms']:.1f} ms | **{r['sparse_vs_onnxruntime']:.2f}x** |"
        for r in report["results"]
    ]
    return "\n".join([*lines, "", _conditions(report)])


def cpu_crossover() -> str:
    """Speed-up of a sparse layer over our own dense kernel, from benchmarks/results/cpu_crossover.json."""
    report = json.loads((RESULTS / "cpu_crossover.json").read_text())
    sparsities = list(report["results"][0]["speedup"])
    lines = [
        "| layer | " + " | ".join(f"{float(z):.0%} zeros" for z in sparsities) + " |",
        "|---" * (len(sparsities) + 1) + "|",
    ]
    lines += [
        f"| {r['layer']} ({r['workload']}) | " + " | ".join(f"{r['speedup'][z]:.2f}x" for z in sparsities) + " |"
        for r in report["results"]
    ]
    environment = report["environment"]
    conditions = f"{report['threads']} threads, {environment['cpu']}; commit {environment['commit']}"
    return "\n".join([*lines, "", f"{conditions}; least of interleaved runs."])


def demo() -> str:
    """What `make demo` printed, from docs/demo.txt, without most of the layers."""
    lines = (ROOT / "docs" / "demo.txt").read_text().splitlines()
    layers = [index for index, line in enumerate(lines) if line.startswith("layer") and "%" in line]
    keep, hidden = set(layers[:7]), len(layers) - 7
    shown: list[str] = []
    for index, line in enumerate(lines):
        if index not in layers or index in keep:
            shown.append(line.rstrip())
        elif index == layers[7]:
            shown.append(f"... {hidden} more layers")
    return "```text\n$ make demo\n" + "\n".join(shown) + "\n```"


def _conditions(report: dict[str, Any]) -> str:
    first, environment = report["results"][0], report["environment"]
    packages = environment.get("packages", {})
    versions = ", ".join(f"{name} {packages[name]}" for name in ("apache-tvm", "onnxruntime") if packages.get(name))
    return (
        f"Batch {first['batch']}, {first['threads']} threads, {environment['cpu']}; {versions}; commit "
        f"{environment['commit']}. Medians; the ratio is the median of {first['rounds']} interleaved pairs in one "
        "process."
    )


def gpu_figures() -> str:
    """The figures that there are, as Markdown."""
    drawn = {path.name for path, text in figures().items() if text is not None}
    names = [f"![{alt}]({name})" for name, (alt, _) in GPU_FIGURES.items() if name in drawn]
    return "\n\n".join(names) or NOTHING


def figures() -> dict[Path, str | None]:
    """Every figure's file and text; None where nothing was measured."""
    report = gpu_report()
    return {ROOT / "docs" / name: draw(report) for name, (_, draw) in GPU_FIGURES.items()}


def gpu_report() -> Report:
    """What was measured on a GPU, from benchmarks/results/gpu_layers.json."""
    return Report(RESULTS / "gpu_layers.json", RESULTS / "gpu_escoin.json")


def _of_gpu_report(block: Callable[[Report], str]) -> str:
    return block(gpu_report())


def gpu_networks_report() -> NetworksReport:
    """What was measured of whole networks on a GPU, from benchmarks/results/gpu_networks.json."""
    return NetworksReport(RESULTS / "gpu_networks.json")


def _of_networks_report(block: Callable[[NetworksReport], str]) -> str:
    return block(gpu_networks_report())


def tuned() -> str:
    """What the shipped tuning logs hold."""
    from benchmarks.shipped_logs import shipped_table

    return shipped_table()


BLOCKS: dict[str, Callable[[], str]] = {
    "cpu-crossover": cpu_crossover,
    "cpu-networks": cpu_networks,
    "demo": demo,
    "gpu-figures": gpu_figures,
    "gpu-serving": serving,
    "tuned": tuned,
    **GPU_STEPS,
    **GPU_OPERATORS,
    "tuned-networks": tuned_networks,
    **TUNING_TRIALS,
    **{name: partial(_of_gpu_report, block) for name, block in gpu_tables.BLOCKS.items()},
    **{name: partial(_of_networks_report, block) for name, block in GPU_NETWORKS.items()},
}


def rendered(text: str) -> str:
    """`text` with every marked block written anew."""
    return _MARKED.sub(lambda m: f"{m[1]}{BLOCKS[m['name']]()}\n{m[3]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for path, fresh in {**{path: rendered(path.read_text()) for path in DOCUMENTS}, **figures()}.items():
        if fresh != (path.read_text() if path.exists() else None):
            stale.append(path)
            if check:
                continue
            if fresh is None:
                path.unlink()
            else:
                path.write_text(fresh)
    if check and stale:
        sys.exit(f"stale: {', '.join(str(path.relative_to(ROOT)) for path in stale)}: run python -m benchmarks.render")


if __name__ == "__main__":
    main()
