"""Random convolutions through every CUDA template on a GPU, held against float64.

    python tests/gpu/campaign.py --cases 100 --seed 0 --json result.json

Every case runs with each template's default knobs, with a drawn format, and with drawn knobs; one of 16 bits also with
drawn knobs that sum pairs of pixels. Each kernel runs twice on an output full of NaN: both results must be right and
equal, so that a race between threads has two chances to show.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as OutOfTime
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.cases import FORMATS, Case, choose_knobs, seeded, seeded_choose

VARIANTS = {
    "cuda_pixel": ("default", "format", "knobs", "flat", "pairs"),
    "cuda_pixel_nonzero": ("default", "format", "knobs", "flat"),
    "cuda_pattern": ("default", "knobs", "pairs"),
    "cuda_jump": ("default", "knobs"),
    "cuda_row": ("default", "knobs"),
    "cuda_dense": ("default", "knobs"),
    "cuda_tensor": ("default", "knobs"),
    "fallback": ("default",),
}
#: Drawn knobs are often too large for a block, and vectors reach over groups; this many draws find some that do not.
DRAWS = 20


@dataclass
class Trial:
    """One case through one template; `outcome` is ok, wrong, crashed, refused or does not apply."""

    number: int
    template: str
    variant: str
    knobs: dict[str, int | str] = field(default_factory=dict)
    outcome: str = ""
    detail: str = ""
    error: float = 0.0

    @property
    def failed(self) -> bool:
        # Defaults always fit; formats may reach over groups, knobs over limits.
        return self.outcome in ("wrong", "crashed") or (self.outcome == "refused" and self.variant == "default")


def build(trial: Trial, case: Case, arch: str, library: str) -> Trial:
    """Compile a trial into a library file, in a process of its own; its outcome stays empty where that works."""
    import tvm

    from tvm_sparse.errors import InputError
    from tvm_sparse.schedules import template
    from tvm_sparse.tvm_support import check_cuda_modules, cuda_build, cuda_target

    target, chosen = cuda_target(arch), template(trial.template)
    density = float((case.weight() != 0).mean())
    if reason := chosen.applies(case.workload, target) or chosen.too_much(case.workload, density):
        trial.outcome, trial.detail = "does not apply", reason
        return trial
    choose = seeded_choose(case.seed + trial.number)
    try:
        for knobs in _knobs(trial.variant, chosen, case, target, choose):
            trial.knobs = knobs
            try:
                kernel = chosen.kernel(case.workload, case.weight(), target, knobs)
                break
            except InputError as error:
                trial.outcome, trial.detail = "refused", str(error)
        else:
            trial.outcome = trial.outcome or "does not apply"
            return trial
        trial.outcome = trial.detail = ""
        with cuda_build(arch) as under_way:
            executable = tvm.compile(tvm.IRModule({"main": kernel.func}), target=under_way.target)
        check_cuda_modules(executable, under_way)
        executable.export_library(library)
        np.savez(library + ".npz", *kernel.constants.arrays)
    except Exception as error:  # every failure of a compiler is a finding
        trial.outcome, trial.detail = "crashed", f"{type(error).__name__}: {str(error)[-300:]}"
    return trial


def _knobs(variant: str, template: Any, case: Case, target: Any, choose: Any) -> Iterator[dict[str, int | str]]:
    from tvm_sparse.compute.flat_tiling import flat_pixels
    from tvm_sparse.schedules.cuda_tiles import FLAT, MOST_PIXELS, extents_text

    default = template.default(case.workload, case.density, target)
    if variant == "default":
        yield default
        return
    space = template.space(case.workload, target)
    if variant == "flat":
        if FLAT not in space["lanes"]:
            return
        pixels = tuple(map(extents_text, flat_pixels(case.workload, MOST_PIXELS)))
        space = {**space, "lanes": (FLAT,), "pixels": pixels}
    if variant == "pairs":
        space = {**space, "pairs": tuple(pairs for pairs in space.get("pairs", ()) if pairs != "no")}
        if not space["pairs"]:
            return
    for _ in range(DRAWS):
        yield {**default, "format": choose(FORMATS)} if variant == "format" else choose_knobs(choose, space)
    if variant == "pairs":
        yield {**default, "pairs": choose(space["pairs"])}


def run(trial: Trial, case: Case, library: str) -> None:
    """Run a built trial twice on the GPU and judge it."""
    import tvm

    device = tvm.cuda(0)
    main = tvm.runtime.load_module(library)["main"]
    inputs = case.inputs()
    x = inputs.pop("x")
    with np.load(library + ".npz") as constants:
        # numpy stores elements of a dtype that is not its own as bytes.
        filters = [array.view(x.dtype) if array.dtype.kind == "V" else array for array in constants.values()]
        arrays = [x, *filters, *inputs.values()]
    tensors = [tvm.runtime.tensor(array, device) for array in arrays]
    results = []
    for _ in range(2):
        y = tvm.runtime.tensor(case.poisoned_output(), device)
        main(*tensors, y)
        results.append(y.numpy())
    trial.error = max(map(case.error, results))
    complaint = next(filter(None, map(case.wrong, results)), "")
    if not complaint and not np.array_equal(*results):
        complaint = f"{case}: two runs differ"
    trial.outcome, trial.detail = ("wrong", complaint) if complaint else ("ok", "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100, help="random convolutions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--templates", default=",".join(VARIANTS), help="names, separated by commas")
    parser.add_argument("--time-limit", type=float, default=float("inf"), metavar="S", help="leave out what is late")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilers at a time")
    parser.add_argument("--json", type=Path, help="write every trial to this file")
    options = parser.parse_args()
    stop_at = time.monotonic() + options.time_limit

    import tvm

    if not tvm.cuda(0).exist:
        print("campaign: no CUDA device", file=sys.stderr)
        return 2
    arch = "sm_" + str(tvm.cuda(0).compute_version).replace(".", "")
    cases = seeded(options.seed, options.cases, options.dtype)
    trials = [
        (Trial(number, template, variant), case)
        for number, case in enumerate(cases)
        for template in options.templates.split(",")
        for variant in VARIANTS[template]
        if variant != "pairs" or options.dtype != "float32"
    ]
    done: list[Trial] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        libraries = [f"{folder}/{number}.so" for number in range(len(trials))]
        built = [
            pool.submit(build, trial, case, arch, library)
            for (trial, case), library in zip(trials, libraries, strict=True)
        ]
        for future, (_, case), library in zip(built, trials, libraries, strict=True):
            try:
                trial = future.result(None if stop_at == float("inf") else max(0.0, stop_at - time.monotonic()))
            except OutOfTime:
                pool.shutdown(wait=False, cancel_futures=True)
                break
            if not trial.outcome:
                try:
                    run(trial, case, library)
                except Exception as error:  # an illegal access spoils all trials after it: the first is the culprit
                    trial.outcome, trial.detail = "crashed", f"{type(error).__name__}: {str(error)[-300:]}"
            done.append(trial)
            if trial.failed:
                print(f"FAILED {trial.template} {trial.variant} {trial.knobs} {trial.outcome}: {trial.detail}: {case}")
    if len(done) < len(trials):
        print(f"out of time: {len(done)} of {len(trials)} trials")
    return report(done, cases, options.json)


def report(trials: list[Trial], cases: list[Case], json_file: Path | None) -> int:
    """A line per template; every trial to the file. The exit code: 1 if any failed or nothing ran."""
    failed = 0 if trials else 1
    for template in dict.fromkeys(trial.template for trial in trials):
        own = [trial for trial in trials if trial.template == template]
        counts = Counter(trial.outcome for trial in own)
        bad = sum(trial.failed for trial in own)
        failed += bad or not counts["ok"]
        worst = max((trial.error for trial in own if trial.outcome == "ok"), default=float("nan"))
        listed = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
        ran = len({trial.number for trial in own})
        print(f"{template}: {ran} cases, {listed}; {bad} failures; worst error {worst:.1e}")
    if json_file is not None:
        rows = [{**asdict(trial), "failed": trial.failed, "case": str(cases[trial.number])} for trial in trials]
        json_file.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
