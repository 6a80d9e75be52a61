"""The tables of docs/gpu-performance.md, from the record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from benchmarks.gpu_layers.goals import GOALS, real_pairs
from benchmarks.gpu_layers.layers import REFERENCE, layers
from benchmarks.gpu_layers.report import ESCOIN, Measured, Report, crossing, geometric_mean, ratios
from benchmarks.markdown import GOAL_HEAD, NOTHING, cudnn_version, goal_rows, microseconds, table, times

SPARSITY = 0.9
PEERS = {
    "cudnn_fp32": "cuDNN float32",
    "cudnn_tf32": "cuDNN TF32",
    "cudnn_fp16": "cuDNN float16",
    "cudnn_bf16": "cuDNN bfloat16",
    "cublas": "cuBLAS",
    "cublas_im2col": "cuBLAS with im2col",
    "cusparse": "cuSPARSE",
    "cusparse_im2col": "cuSPARSE with im2col",
    ESCOIN: "ported Escoin",
}
CUDNN = ("cudnn_fp32", "cudnn_tf32", "cudnn_fp16")
RIVALS = (*CUDNN, "cusparse_im2col", "cublas_im2col", ESCOIN)


def conditions(report: Report) -> str:
    """The device, the versions and the commits of what the page quotes, a line for each run that a case is from."""
    lines = []
    for number, run in report.runs.items():
        environment, device, libraries = run["environment"], run["device"], run["libraries"]
        gpus = environment["cuda"]["gpus"] or [device["name"]]
        version = cudnn_version(libraries["cudnn"])
        cases = report.measured(run=number)
        clocks = [case.record["ours"]["time"]["clock_mhz"] for case in cases]
        clock = f"{device['clock_khz'] // 1000} MHz"
        clock += f", {min(clocks)} to {max(clocks)} MHz while measuring" if clocks else ""
        lines.append(
            f"- {run['date']}: {len(cases)} cases on {gpus[0]}; {device['sms']} SMs at {clock}; "
            f"apache-tvm {environment['packages']['apache-tvm']}, torch {libraries['torch']}, cuDNN "
            f"{version}; commit {environment['commit']}, kernel sources {run['sources']}; seed {run['seed']}."
        )
    return "\n".join(lines) or NOTHING


def goals(report: Report) -> str:
    """What was to be reached, and what is."""
    return table(GOAL_HEAD, goal_rows(GOALS, report))


def means(report: Report) -> str:
    """Geometric means of the speed-up over the reference layers, by batch and sparsity."""
    rows = []
    for batch, sparsity in sorted({(m.record["batch"], m.record["sparsity"]) for m in report.measured(mask="random")}):
        cases = report.reference(REFERENCE, batch, sparsity)
        if cases:
            cells = [times(geometric_mean(ratios(cases, peer))) for peer in PEERS if peer != "cudnn_bf16"]
            rows.append([str(batch), f"{sparsity:.0%}", f"{len(cases)} of {len(REFERENCE)}", *cells])
    names = [f"over {name}" for peer, name in PEERS.items() if peer != "cudnn_bf16"]
    return table(["batch", "zeros", "layers", *names], rows)


def reference_layers(report: Report) -> str:
    """Every reference layer at 90 %, a table for each batch."""
    parts = []
    for batch in sorted({m.record["batch"] for m in report.measured(mask="random", sparsity=SPARSITY)}):
        cases = report.reference(REFERENCE, batch, SPARSITY)
        if cases:
            parts.append(f"### Batch {batch}, {SPARSITY:.0%} zeros, float32\n\n{_layer_table(cases)}")
    return "\n\n".join(parts) or NOTHING


def sixteen_bit(report: Report) -> str:
    """Layers with 16-bit storage."""
    parts = []
    for dtype, rivals in (("float16", ("cudnn_fp16",)), ("bfloat16", ("cudnn_bf16", "cudnn_fp16"))):
        cases = report.measured(dtype=dtype, mask="random")
        rows = [
            [
                *_head(case),
                f"{case.record['sparsity']:.0%}",
                *_ours(case),
                *(microseconds(case.peers_us.get(peer)) for peer in rivals),
                *(times(case.ratio(peer)) for peer in rivals),
                f"{case.record['ours']['error']:.1e}",
            ]
            for case in cases
        ]
        names = [PEERS[peer] for peer in rivals]
        if rows:
            head = ["layer", "batch", "zeros", "ours", "template", *names, *(f"over {name}" for name in names), "error"]
            parts.append(f"### {dtype}\n\n{table(head, rows)}")
    return "\n\n".join(parts) or NOTHING


def published_filters(report: Report) -> str:
    """Published pruned filters beside random ones of as many nonzeros."""
    rows = [
        [
            f"{real.record['source']} ({real.record['layer']})",
            str(real.record["batch"]),
            f"{real.record['sparsity']:.1%}",
            f"{real.record['row_nnz']['max'] / max(1, real.record['row_nnz']['median']):.1f}",
            *_ours(real),
            microseconds(like.us),
            f"{like.us / real.us:.0%}",
            *(times(real.ratio(peer)) for peer in CUDNN),
        ]
        for real, like in real_pairs(report)
    ]
    head = ["filter", "batch", "zeros", "longest row over median", "ours", "template", "random filter"]
    return table([*head, "speed over random", *(f"over {PEERS[peer]}" for peer in CUDNN)], rows)


def crossovers(report: Report) -> str:
    """From how many zeros on each reference layer beats a dense peer."""
    rows = []
    for name in REFERENCE:
        cells = [
            _crossing(report.measured(layer=name, batch=batch, dtype="float32", mask="random"), peer)
            for batch in (1, 32)
            for peer in CUDNN
        ]
        if any(cells):
            rows.append([name, *cells])
    return table(["layer", *(f"batch {batch}: {PEERS[peer]}" for batch in (1, 32) for peer in CUDNN)], rows)


def templates(report: Report) -> str:
    """How often each template was the fastest, and what its own defaults cost, at 90 % and float32."""
    rows = []
    for batch in sorted({m.record["batch"] for m in report.measured(mask="random")}):
        cases = report.reference(REFERENCE, batch, SPARSITY)
        for name in sorted({row["template"] for case in cases for row in case.record["variants"]}):
            best = [_best_of(case, name) for case in cases]
            slowdown = geometric_mean([us / case.us for us, case in zip(best, cases, strict=True) if us])
            wins = sum(case.record["ours"]["template"] == name for case in cases)
            applied = sum(us is not None for us in best)
            rows.append([str(batch), name, f"{wins} of {len(cases)}", str(applied), times(slowdown)])
    return table(["batch", "template", "fastest", "layers it ran", "its time over the fastest's"], rows)


def all_layers(report: Report) -> str:
    """Every layer at 90 %, batch 1 and 32."""
    rows = []
    for name, layer in layers().items():
        cases = [
            next(iter(report.measured(layer=name, batch=b, sparsity=SPARSITY, dtype="float32", mask="random")), None)
            for b in (1, 32)
        ]
        if any(cases):
            cells = []
            for case in cases:
                cells += [*_ours(case), *(times(case.ratio(peer)) for peer in CUDNN)] if case else [""] * 5
            shape = str(layer.workload(1)).removeprefix("n1 ")
            rows.append([f"{name} ({shape})", *cells])
    head = [
        f"batch {batch}: {text}"
        for batch in (1, 32)
        for text in ("ours", "template", *(f"over {PEERS[peer]}" for peer in CUDNN))
    ]
    return table(["layer", *head], rows)


def troubles(report: Report) -> str:
    """What was wrong, failed or skipped."""
    lines = []
    for record in report.records:
        for row in record["variants"]:
            if row.get("wrong"):
                lines.append(f"- {record['case']}, {row['template']}: **wrong**, relative error {row['error']}")
            elif "failed" in row and row["default"]:
                lines.append(f"- {record['case']}, {row['template']}: {row['failed']}")
        if "failed" in record:
            lines.append(f"- {record['case']}: {record['failed']}")
    return "\n".join(lines) or ("Nothing." if report.records else NOTHING)


def _layer_table(cases: Sequence[Measured]) -> str:
    rows = []
    for case in cases:
        record = case.record
        ours, bound = record["ours"], record["binding"]
        rows.append(
            [
                record["layer"],
                *_ours(case),
                microseconds(_alone(case)),
                microseconds(ours["warm_icache"]["median_us"]),
                microseconds(ours["cold_l2"]["median_us"]),
                f"{ours['share_of_bound'][bound]:.0%} of {bound}",
                *(microseconds(case.peers_us.get(peer)) for peer in CUDNN),
                *(times(case.ratio(peer)) for peer in RIVALS),
                f"{ours['error']:.0e}",
            ]
        )
    means = [times(geometric_mean(ratios(cases, peer))) for peer in RIVALS]
    rows.append(["geometric mean", *[""] * (6 + len(CUDNN)), *means, ""])
    over = [f"over {PEERS[peer]}" for peer in RIVALS]
    measured = ["ours", "template", "without overlap", "warm code", "cold L2", "share of bound"]
    return table(["layer", *measured, *(PEERS[peer] for peer in CUDNN), *over, "error"], rows)


def _head(case: Measured) -> list[str]:
    return [case.record["layer"], str(case.record["batch"])]


def _ours(case: Measured) -> list[str]:
    """Our time with its spread, and the template, with where its knobs are from unless they are its default."""
    ours = case.record["ours"]
    time = ours["time"]
    spread = f" ({time['p10_us']:.3g}–{time['p90_us']:.3g})"
    source = "" if ours["default"] else " (log)" if ours.get("logged") else " (tried)"
    return [microseconds(case.us) + spread, ours["template"].removeprefix("cuda_") + source]


def _alone(case: Measured) -> float | None:
    """Our fastest time where every kernel begins after the one in front of it has ended."""
    if not case.record["ours"].get("overlap"):
        return case.us
    rows = case.record["variants"]
    return min((row["time"]["median_us"] for row in rows if "time" in row and not row["overlap"]), default=None)


def _best_of(case: Measured, template: str) -> float | None:
    times = [
        row["time"]["median_us"] for row in case.record["variants"] if row["template"] == template and "time" in row
    ]
    return case.us if case.record["ours"]["template"] == template else min(times, default=None)


def _crossing(cases: Iterable[Measured], peer: str) -> str:
    points = [(case.record["sparsity"], ratio) for case in cases if (ratio := case.ratio(peer)) is not None]
    if len(points) < 2:
        return ""
    found = crossing(points)
    if found is None:
        return f"not up to {max(points)[0]:.0%}"
    return f"{found:.0%}" if found else f"below {min(points)[0]:.0%}"


BLOCKS: dict[str, Callable[[Report], str]] = {
    "gpu-conditions": conditions,
    "gpu-goals": goals,
    "gpu-means": means,
    "gpu-reference-layers": reference_layers,
    "gpu-sixteen-bit": sixteen_bit,
    "gpu-published-filters": published_filters,
    "gpu-crossovers": crossovers,
    "gpu-templates": templates,
    "gpu-all-layers": all_layers,
    "gpu-troubles": troubles,
}
