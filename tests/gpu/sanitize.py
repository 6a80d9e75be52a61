"""Every CUDA template under compute-sanitizer: memcheck, racecheck, initcheck and synccheck.

    python tests/gpu/sanitize.py [--tools memcheck,racecheck] [--dtype float16] [--templates cuda_pixel]

Kernels are compiled first, without the sanitizer; each tool then runs all of them in one process of its own. A kernel
that is wrong, or that a tool complains of, gives exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.cases import Case
from tests.gpu.campaign import VARIANTS, Trial, build, run
from tvm_sparse.workload import ConvWorkload, Epilogue

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
FULL = Epilogue(bias=True, residual=True, activation="relu")
CASES = {
    "3x3": ConvWorkload(2, 24, 14, 14, 20, 3, 3, padding=(1, 1, 1, 1), epilogue=FULL),
    "7x7 images": ConvWorkload(5, 16, 7, 7, 40, 3, 3, padding=(1, 1, 1, 1)),
    "planes": ConvWorkload(5, 40, 1, 49, 24, 1, 1, epilogue=FULL),
    "wide": ConvWorkload(1, 12, 28, 28, 8, 3, 3, padding=(1, 1, 1, 1)),
    "linear": ConvWorkload(6, 700, 1, 1, 40, 1, 1, epilogue=FULL),
    "strided, dilated, grouped": ConvWorkload(2, 8, 23, 21, 12, 5, 3, (2, 3), (2, 1, 1, 2), (1, 2), 2),
}
#: Seconds for one tool.
LIMIT_S = 300


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tools", default=",".join(TOOLS))
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--templates", help="names, separated by commas; by default all for this dtype")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run is not None:
        return run_all(options.run, options.dtype)

    import tvm

    if not tvm.cuda(0).exist or shutil.which("compute-sanitizer") is None:
        print("sanitize: needs a CUDA device and compute-sanitizer", file=sys.stderr)
        return 2
    arch = "sm_" + str(tvm.cuda(0).compute_version).replace(".", "")
    with tempfile.TemporaryDirectory() as folder:
        # Tensor cores multiply 16-bit elements.
        every = [name for name in VARIANTS if name != "cuda_tensor" or options.dtype != "float32"]
        names = options.templates.split(",") if options.templates else every
        variants = ("default", "flat") if options.dtype == "float32" else ("default", "pairs")
        trials = [
            Trial(number, name, variant)
            for name in names
            for variant in variants
            if variant in VARIANTS[name]
            for number in range(len(CASES))
        ]
        with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
            built = [
                pool.submit(build, trial, case_of(trial, options.dtype), arch, f"{folder}/{index}.so")
                for index, trial in enumerate(trials)
            ]
            outcomes = [future.result() for future in built]
        for trial in outcomes:
            if trial.failed:
                print(f"{trial.template} {trial.outcome}: {trial.detail}")
        rows = [asdict(trial) for trial in outcomes]
        (Path(folder) / "trials.json").write_text(json.dumps(rows))
        ran = [sum(t.template == name and not t.outcome for t in outcomes) for name in names]
        print("kernels: " + ", ".join(f"{name} {count}" for name, count in zip(names, ran, strict=True)))
        bad = [tool for tool in options.tools.split(",") if not clean(tool, folder, options.dtype)]
    return 1 if bad or min(ran) == 0 or any(trial.failed for trial in outcomes) else 0


def case_of(trial: Trial, dtype: str) -> Case:
    return Case(replace(list(CASES.values())[trial.number], dtype=dtype), 0.2, "rows", trial.number)


def clean(tool: str, folder: str, dtype: str) -> bool:
    """Whether a tool has nothing to say of the kernels in a folder."""
    command = [
        "compute-sanitizer",
        "--tool",
        tool,
        "--error-exitcode",
        "9",
        sys.executable,
        __file__,
        "--run",
        folder,
        "--dtype",
        dtype,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    lines = (done.stdout + done.stderr).strip().splitlines()
    summary = next((line for line in reversed(lines) if "SUMMARY" in line), lines[-1] if lines else "no output")
    print(f"{tool}: {'clean' if done.returncode == 0 else f'exit {done.returncode}'}: {summary}", flush=True)
    if done.returncode:
        print("\n".join(lines[-40:]))
    return done.returncode == 0


def run_all(folder: Path, dtype: str) -> int:
    """Run the built kernels of a folder: what a tool watches."""
    failed = 0
    for index, row in enumerate(json.loads((folder / "trials.json").read_text())):
        trial = Trial(**row)
        if not trial.outcome:
            run(trial, case_of(trial, dtype), str(folder / f"{index}.so"))
            failed += trial.failed
            if trial.failed:
                print(f"{trial.template}: {trial.detail}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
