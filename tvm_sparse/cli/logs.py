"""`tvm-sparse logs`: look at tuning logs, merge them, and keep only what counts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tvm_sparse.cli.options import JsonFlag

if TYPE_CHECKING:
    from tvm_sparse.tuning.records import Record

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Look at tuning logs, merge and prune them.")

Logs = Annotated[
    list[Path], typer.Argument(metavar="LOG...", show_default=False, help="Folders of logs, or single .jsonl files.")
]


@app.command("list", short_help="what was measured, a line per layer and device")
def list_logs(logs: Logs, json: JsonFlag = False) -> None:
    """Show every layer of some logs: trials, failures, the fastest time and the template that reached it."""
    from tvm_sparse.tuning.selection import best, by_key

    rows = []
    for group in by_key(_read(*logs)).values():
        fastest = best(group)
        failed = sum(not record.ok for record in group)
        rows.append({**_layer(group[0]), "records": len(group), "failed": failed, **_result(fastest)})
    _show(rows, json)


@app.command("best", short_help="the best record of every layer and device")
def best_records(logs: Logs, json: JsonFlag = False) -> None:
    """Show the fastest record of every layer with its knobs, beside the fastest sparse and dense times."""
    from tvm_sparse.tuning.records import canonical
    from tvm_sparse.tuning.selection import best, by_key

    rows = []
    for group in by_key(_read(*logs)).values():
        fastest = best(group)
        if fastest is None:
            continue
        times = {f"{kind} µs": getattr(best(group, kind), "time_us", None) for kind in ("sparse", "dense")}
        knobs = fastest.knobs if json else canonical(fastest.knobs)
        rows.append({**_layer(fastest), **times, **_result(fastest), "knobs": knobs})
    _show(rows, json)


@app.command("merge", short_help="gather logs into one folder, without doubles")
def merge(
    logs: Logs,
    into: Annotated[Path, typer.Option("--into", metavar="DIR", show_default=False, help="The folder to write to.")],
) -> None:
    """Add the records of some logs to a folder of logs; of doubles the fastest stays."""
    from tvm_sparse.tuning.log_files import LogWriter, append_all, rewrite
    from tvm_sparse.tuning.selection import deduplicated

    records = deduplicated(_read(*logs))
    append_all(into, records)
    writer = LogWriter(into)
    kept = 0
    for device in sorted({record.site.device for record in records}):
        kept += len(_told(rewrite(writer.path(device), deduplicated)))
    print(f"{len(records)} records read, {kept} in {into}")


@app.command("prune", short_help="keep the fastest records of every layer")
def prune(
    logs: Logs,
    keep: Annotated[int, typer.Option(min=1, help="Fastest records to keep of every layer and device.")] = 8,
) -> None:
    """Rewrite logs in place: the fastest records of every layer, its default, its fastest sparse and dense ones."""
    from tvm_sparse.tuning.log_files import log_files, rewrite
    from tvm_sparse.tuning.selection import pruned

    def fastest(records: list[Record]) -> list[Record]:
        print(f"{path}: {len(records)} records", end="")
        return pruned(records, keep)

    for path in [path for place in logs for path in log_files(place)]:
        print(f", {len(_told(rewrite(path, fastest)))} kept")


def _read(*places: Path) -> list[Record]:
    from tvm_sparse.tuning.log_files import read_log

    return _told(read_log(*places))


def _told(log: Any) -> list[Record]:
    """The records of a log; what was wrong with it goes to stderr."""
    for problem in log.problems:
        typer.echo(f"warning: {problem}", err=True)
    return log.records


def _layer(record: Record) -> dict[str, Any]:
    threads = "" if record.site.threads is None else f", {record.site.threads} threads"
    return {
        "device": f"{record.site.device} ({record.site.arch}{threads})",
        "workload": str(record.workload),
        "epilogue": str(record.workload.epilogue),
        "dtype": record.workload.dtype,
        "density": record.density,
    }


def _result(fastest: Record | None) -> dict[str, Any]:
    if fastest is None:
        return {"µs": None, "kind": None, "template": None}
    return {"µs": fastest.time_us, "kind": fastest.kind, "template": fastest.template}


def _show(rows: list[dict[str, Any]], json: bool) -> None:
    from tvm_sparse.cli.output import show_table, to_json

    if json:
        print(to_json(rows))
        return
    show_table(rows)
