"""Where the time of a network goes: the profile of a case, by template and by its slowest kernels."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from benchmarks.gpu_layers.store import Record
from benchmarks.gpu_networks.report import NAMES, Measured, Report
from benchmarks.markdown import NOTHING, microseconds, table

#: What a record keeps of a kernel.
FIELDS = ("name", "template", "decision", "time_us", "bound_share")
SLOWEST = 8


def kept(profile: dict[str, Any]) -> Record:
    """What a record keeps of a `tvm_sparse.deploy.Profile` as a dict."""
    kernels = [{name: kernel[name] for name in FIELDS} for kernel in profile["kernels"]]
    return {"call_us": profile["call_us"], "sum_us": profile["sum_us"], "kernels": kernels}


def templates(report: Report) -> str:
    """For every profiled case, the time by what runs it."""
    rows = []
    for case in _profiled(report):
        profile, groups = case.record["profile"], defaultdict(list)
        for kernel in profile["kernels"]:
            groups[kernel["template"] or "other operators"].append(kernel["time_us"])
        for number, (name, times_us) in enumerate(sorted(groups.items(), key=lambda item: -sum(item[1]))):
            head = _case(case) if number == 0 else ["", "", ""]
            call = f"{microseconds(case.us)}, {microseconds(profile['sum_us'])} one by one" if number == 0 else ""
            share = f"{sum(times_us) / profile['sum_us']:.0%}"
            rows.append([*head, call, name, str(len(times_us)), microseconds(sum(times_us)), share])
    return table(["network", "batch", "ours in", "a call", "runs by", "kernels", "time", "share"], rows)


def slowest(report: Report) -> str:
    """For every profiled case, its slowest kernels, and how close they are to what the device allows."""
    parts = []
    for case in _profiled(report):
        kernels = sorted(case.record["profile"]["kernels"], key=lambda kernel: -kernel["time_us"])[:SLOWEST]
        rows = [
            [
                kernel["name"],
                kernel["decision"],
                kernel["template"],
                microseconds(kernel["time_us"]),
                "" if kernel["bound_share"] is None else f"{kernel['bound_share']:.0%}",
            ]
            for kernel in kernels
        ]
        network, batch, precision = _case(case)
        head = ["kernel", "runs", "template", "time", "share of the bound"]
        parts.append(f"### {network}, batch {batch}, {precision}\n\n{table(head, rows)}")
    return "\n\n".join(parts) or NOTHING


def _profiled(report: Report) -> list[Measured]:
    return [case for case in report.measured() if case.record.get("profile")]


def _case(case: Measured) -> list[str]:
    return [NAMES[case.record["network"]], str(case.record["batch"]), case.record["precision"]]
