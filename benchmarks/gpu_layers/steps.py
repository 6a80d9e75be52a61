"""The account of docs/gpu-performance.md: what single steps brought, and what hardware counters say.

From `benchmarks/results/gpu_steps.json`, which was taken while the kernels were written.
"""

from __future__ import annotations

import json
from pathlib import Path

STEPS = Path(__file__).parents[1] / "results" / "gpu_steps.json"


def steps() -> str:
    """A line for each change: the same layer before and after it."""
    lines = ["| step | layer | batch | before | after | gain |", "|---|---|---|---|---|---|"]
    for step in json.loads(STEPS.read_text())["steps"]:
        before, after = step["before_us"], step["after_us"]
        lines.append(
            f"| {step['step']} | {step['layer']} | {step['batch']} | {before:.3g} us | {after:.3g} us "
            f"| {before / after:.2f}x |"
        )
    return "\n".join(lines)


def counters() -> str:
    """What the multiprocessors did in a few kernels."""
    lines = [
        "| layer | batch | kernel | time | shared memory busy | issue slots busy | multiply-adds of all instructions "
        "| copies a multiprocessor | cycles |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for kernel in json.loads(STEPS.read_text())["counters"]:
        instructions = kernel["instructions_per_sm"]
        multiply_adds, copies = kernel["multiply_add_instructions_per_sm"], kernel["asynchronous_copies_per_sm"]
        lines.append(
            f"| {kernel['layer']} | {kernel['batch']} | {kernel['kernel']} | {kernel['gpu_time_us']:.3g} us "
            f"| {kernel['shared_pipe_busy_pct']:.0f}% | {kernel['issue_slots_busy_pct']:.0f}% "
            f"| {multiply_adds / instructions:.0%} | {copies:.0f} "
            f"| {kernel['active_cycles_per_sm']:.0f} |"
        )
    return "\n".join(lines)


BLOCKS = {"gpu-steps": steps, "gpu-counters": counters}
