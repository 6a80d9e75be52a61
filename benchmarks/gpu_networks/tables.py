"""The tables of docs/gpu-networks.md and the short one of README.md, from the record."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.gpu_networks import profiles
from benchmarks.gpu_networks.cases import LINEAR_TOO, PUBLISHED, SEEDED
from benchmarks.gpu_networks.goals import GOALS
from benchmarks.gpu_networks.report import NAMES, PRECISIONS, Measured, Report
from benchmarks.markdown import GOAL_HEAD, NOTHING, cudnn_version, goal_rows, microseconds, table, times

_HEAD = ("network", "batch", "zeros", "weights", "ours in")
_CUDNN = tuple(f"cuDNN {precision}" for precision in PRECISIONS)
_OVER = tuple(f"over {name}" for name in _CUDNN)


def conditions(report: Report) -> str:
    """The device, the versions and the commits, a line for each run that a case is from."""
    lines = []
    for number, run in report.runs.items():
        environment, libraries = run["environment"], run["libraries"]
        gpus = environment["cuda"]["gpus"] or [run["device"]["name"]]
        version = cudnn_version(libraries["cudnn"])
        cases = report.measured(run=number)
        rounds = sorted({case.record["rounds"] for case in cases})
        lines.append(
            f"- {run['date']}: {len(cases)} cases on {gpus[0]}; {environment['cpu']}; apache-tvm "
            f"{environment['packages']['apache-tvm']}, torch {libraries['torch']}, cuDNN {version}; commit "
            f"{environment['commit']}, sources {run['sources']}, tuning records {run['log']}; seed {run['seed']}, "
            f"{' or '.join(map(str, rounds))} rounds."
        )
    return "\n".join(lines) or NOTHING


def goals(report: Report) -> str:
    """What was to be reached, and what is."""
    return table(GOAL_HEAD, goal_rows(GOALS, report))


def networks(report: Report) -> str:
    """Every case beside torch's best eager form in each precision; unbound calls where some were measured."""
    rows = []
    unbound = ["unbound"] * any(case.record.get("unbound") for case in report.measured())
    for case in report.measured():
        ours = case.record["ours"]
        rows.append(
            [
                *_head(case),
                f"{microseconds(case.us)} ({ours['p10_us']:.4g}–{ours['p90_us']:.4g})",
                microseconds(ours["latency_us"]),
                microseconds(ours["host_us"]),
                *(_unbound(case) for _ in unbound),
                *(_time(case, precision) for precision in PRECISIONS),
                *(times(case.ratio(precision)) for precision in PRECISIONS),
                f"{case.error:.0e}",
            ]
        )
    return table([*_HEAD, "ours", "latency", "host", *unbound, *_CUDNN, *_OVER, "error"], rows)


def compiled(report: Report) -> str:
    """torch.compile where it was tried, beside the fastest eager form."""
    rows = []
    for case in report.measured():
        for precision in PRECISIONS:
            best, eager = case.best(precision, compiled=True), case.best(precision)
            if best is not None:
                rows.append(
                    [
                        *_head(case),
                        microseconds(case.us),
                        precision,
                        "" if eager is None else microseconds(eager["time"]["median_us"]),
                        microseconds(best["time"]["median_us"]),
                        times(best["speed_up"]),
                    ]
                )
    return table([*_HEAD, "ours", "torch in", "eager", "torch.compile", "over torch.compile"], rows)


def forms(report: Report) -> str:
    """Every form of torch that was tried."""
    rows = []
    for case in report.measured():
        for peer in case.record["peers"]:
            if peer["time"] is None:
                rows.append([*_head(case), *_form(peer), "", "", "", peer["note"].replace("|", "/")])
                continue
            found = peer["time"]
            rows.append(
                [
                    *_head(case),
                    *_form(peer),
                    f"{microseconds(found['median_us'])} ({found['p10_us']:.4g}–{found['p90_us']:.4g})",
                    times(peer["speed_up"]),
                    f"{peer['relative_error']:.0e}",
                    peer["note"],
                ]
            )
    return table([*_HEAD, "torch in", "layout", "how", "time", "ours is faster", "error", ""], rows)


def short(report: Report) -> str:
    """The README's table: seeded weights at 90 %."""
    rows = [
        [
            NAMES[case.record["network"]],
            str(case.record["batch"]),
            microseconds(case.us),
            *(_time(case, precision) for precision in PRECISIONS),
            *(f"**{times(case.ratio(precision))}**" for precision in PRECISIONS[:1]),
        ]
        for case in report.measured(sparsity=0.9, weights=SEEDED, precision="float32")
    ]
    text = table(["network, 90 % zeros", "batch", "ours, float32", *_CUDNN, "over cuDNN float32"], rows)
    return text if not rows else f"{text}\n\n{_where(report)}"


def endurance(report: Report) -> str:
    """What loops of calls and threads did to memory and results."""
    rows = [
        [
            *_head(case),
            f"{found['calls']:,}",
            f"{found['device_growth_bytes']:,} bytes",
            f"{found['host_growth_bytes'] / 2**20:.1f} MiB",
            str(found["wrong_in_threads"]),
        ]
        for case in report.measured()
        if (found := case.record.get("endurance"))
    ]
    return table([*_HEAD, "calls", "device memory grew", "process grew", "wrong in threads"], rows)


def troubles(report: Report) -> str:
    """What failed."""
    lines = [f"- {record['case']}: {record['failed']}" for record in report.records if "failed" in record]
    return "\n".join(lines) or ("Nothing." if report.records else NOTHING)


def _head(case: Measured) -> list[str]:
    record = case.record
    weights = {SEEDED: "random", LINEAR_TOO: "random, linear layers too", PUBLISHED: "published"}[record["weights"]]
    return [NAMES[record["network"]], str(record["batch"]), f"{record['sparsity']:.0%}", weights, record["precision"]]


def _form(peer: dict[str, str]) -> Sequence[str]:
    return [peer["precision"], peer["layout"].replace("_", " "), peer["how"]]


def _time(case: Measured, precision: str) -> str:
    best = case.best(precision)
    return "" if best is None else microseconds(best["time"]["median_us"])


def _unbound(case: Measured) -> str:
    found = case.record.get("unbound")
    return "" if not found else f"{microseconds(found['median_us'])}, host {microseconds(found['host_us'])}"


def _where(report: Report) -> str:
    """In one line what the figures were measured on."""
    runs = list(report.runs.values())
    gpus = sorted({(run["environment"]["cuda"]["gpus"] or [run["device"]["name"]])[0].split(",")[0] for run in runs})
    commits = sorted({str(run["environment"]["commit"]) for run in runs})
    return (
        f"{', '.join(gpus)}; commit {', '.join(commits)}. Medians of calls one behind the other; torch eager in a CUDA "
        "graph, in the faster of both layouts. More in [docs/gpu-networks.md](docs/gpu-networks.md)."
    )


BLOCKS: dict[str, Callable[[Report], str]] = {
    "gpu-networks-conditions": conditions,
    "gpu-networks-goals": goals,
    "gpu-networks-all": networks,
    "gpu-networks-compiled": compiled,
    "gpu-networks-forms": forms,
    "gpu-networks-templates": profiles.templates,
    "gpu-networks-slowest": profiles.slowest,
    "gpu-networks-endurance": endurance,
    "gpu-networks-troubles": troubles,
    "gpu-networks-short": short,
}
