"""python -m benchmarks.gpu_operators [--only REGEX] [--batches 1,32] [--json FILE]

Every operator is compiled as a network of its own, checked against float64, and timed from a CUDA graph of launches
over rotating inputs; torch's strict float32 kernel likewise, in the faster of two layouts. "bound" is the time that its
multiply-adds or its compulsory memory traffic would take at least; "k" the number of our kernels.
"""

from __future__ import annotations

import argparse
import datetime
import multiprocessing
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

from benchmarks.gpu_operators.build import build
from benchmarks.gpu_operators.cases import OPERATORS
from benchmarks.gpu_operators.measure import Row, measure
from benchmarks.gpu_operators.tables import finite


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="operators whose name this regular expression finds")
    parser.add_argument("--batches", default="1,32")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilers at a time")
    parser.add_argument("--no-peers", action="store_true", help="time only ours")
    parser.add_argument("--compile-only", metavar="ARCH", help="compile for this arch, which needs no GPU, and stop")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start nothing new after this time")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    begin = time.monotonic()
    arch = options.compile_only or _arch()
    if arch is None:
        print("gpu_operators: no CUDA device", file=sys.stderr)
        return 2
    chosen = [o for o in OPERATORS if re.search(options.only, o.name)]
    rows = [(Row(o.name, n), o) for n in map(int, options.batches.split(",")) for o in chosen]
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        paths = [f"{folder}/{number}.so" for number in range(len(rows))]
        futures = {
            pool.submit(build, row.operator, row.batch, arch, path): (row, operator, path)
            for (row, operator), path in zip(rows, paths, strict=True)
        }
        timer = None
        for future in as_completed(futures):
            row, operator, path = futures[future]
            if time.monotonic() - begin > options.seconds:
                print(f"stopped after {options.seconds:g} s")
                pool.shutdown(wait=False, cancel_futures=True)
                break
            try:
                row.kernels, row.note = future.result()
                if not options.compile_only:
                    from benchmarks.gpu_layers.graph_timer import GraphTimer

                    timer = timer or GraphTimer()
                    measure(row, operator, path, timer, "cuda", not options.no_peers)
            except Exception as error:  # one operator that fails must not hide the others
                row.note = f"FAILED {type(error).__name__}: {(str(error).splitlines() or [''])[-1][:120]} {row.note}"
            Path(path).unlink(missing_ok=True)
            print(row, flush=True)
    if options.json is not None:
        from benchmarks.records import record

        record(options.json, [finite(asdict(row)) for row, _ in rows], conditions=_conditions())
    return 1 if any(word in row.note for row, _ in rows for word in ("WRONG", "FAILED")) else 0


def _conditions() -> dict[str, str]:
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {"device": device, "torch": torch.__version__, "date": datetime.date.today().isoformat()}


def _arch() -> str | None:
    """That of the GPU, or None if there is none."""
    import torch

    if not torch.cuda.is_available():
        return None
    return "sm_{}{}".format(*torch.cuda.get_device_capability())


if __name__ == "__main__":
    sys.exit(main())
