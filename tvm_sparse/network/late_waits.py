"""Let independent branches of a network run at once: which kernels depend on none of those in front of them.

Where kernels overlap, each waits at its start for all in front of it. One that needs nothing of those that may still be
running waits at its end instead (`tvm_support.dependent_launch` says why that is sound). Which memory tensors share is
known only once TVM has planned it, so a pass behind its planner marks such functions. Of the calls of one captured
CUDA graph alone is it certain that they follow one another, in memory that stays theirs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import tvm
from tvm import relax
from tvm.relax.backend.cuda import pipeline as cuda
from tvm.target import Target

from tvm_sparse.network.planned import KernelCall, PlannedCalls, written_parameters
from tvm_sparse.tvm_support.dependent_launch import LATE_WAIT


def late_functions(runs: Sequence[Sequence[KernelCall]], never: Collection[str] = ()) -> set[str]:
    """The functions whose first kernel may wait at its end, wherever it is called.

    Parameters
    ----------
    runs : calls that follow one another; what is in front of a run's first call is not known
    never : functions that are also called elsewhere
    """
    functions = {call.function for run in runs for call in run}
    # A function that may not wait late is one more that waits early, which makes others only freer.
    unsafe = set(never) | {run[index].function for run in runs for index in _dependent(run, never)}
    return functions - unsafe


def _dependent(run: Sequence[KernelCall], early: Collection[str]) -> Iterator[int]:
    """Which calls need something of those that may still be running when they begin, or are in `early`."""
    running: list[KernelCall] = []
    for index, call in enumerate(run):
        late = bool(running) and call.function not in early and not any(map(call.depends_on, running))
        if not late:
            yield index
        # A kernel that waits at its start leaves only itself; the second and later ones of a function do.
        running = [*running, call] if late and call.kernels == 1 else [call]


def late_wait_pipeline(module: tvm.IRModule, target: Target) -> tvm.transform.Pass:
    """TVM's "default_build", with `mark_late` behind the capture of CUDA graphs.

    `module` is the one that will be built: in it calls still tell their outputs from their arguments. TVM's own lists
    of passes for CUDA are those of "default_build", but for the passes that legalize, fuse and schedule.
    """
    written = written_parameters(module)
    passes = [
        *cuda.library_dispatch_passes(target),
        relax.transform.LegalizeOps(),
        *cuda.dataflow_lower_passes(target),
        *cuda.finalize_passes(target),
    ]
    captured = next(at for at, each in enumerate(passes, 1) if each.info.name == "RewriteCUDAGraph")
    mark = tvm.transform.module_pass(lambda given, _: mark_late(given, written), opt_level=0, name="MarkLateWaits")
    return tvm.transform.Sequential([*passes[:captured], mark, *passes[captured:]])


def mark_late(module: tvm.IRModule, written: Mapping[str, Collection[int]]) -> tvm.IRModule:
    """The module, planned and captured, with LATE_WAIT on what need not wait early, and independent calls in order.

    `written` says by a function's name which of its parameters it writes; an unknown one may write all.
    """
    found = {
        variable.name_hint: PlannedCalls(module, function, written)
        for variable, function in module.functions_items()
        if isinstance(function, relax.Function)
    }
    captured = {name: given for calls in list(found.values()) for name, given in calls.captures.items()}
    others = [run for name, calls in found.items() if name not in captured for run in calls.runs]
    marked = module.clone()
    runs = []
    for name, given in captured.items():
        groups = [independent(run) for run in PlannedCalls(module, module[name], written, given).runs]
        runs += [[call for group in run for call in group] for run in groups]
        ordered = _with_order(module[name], [group for run in groups for group in run])
        marked.update_func(marked.get_global_var(name), ordered)
    for name in late_functions(runs, {call.function for run in others for call in run}):
        marked.update_func(marked.get_global_var(name), marked[name].with_attr(LATE_WAIT, 1))
    return marked


def independent(run: Sequence[KernelCall]) -> list[list[KernelCall]]:
    """The calls in groups of neighbours that do not depend on each other; in each, those with weights come first.

    The first of a group waits at its start and copies its weights meanwhile. A pooling has none to copy.
    """
    groups: list[list[KernelCall]] = [[]]
    for call in run:
        if any(map(call.depends_on, groups[-1])):
            groups.append([])
        groups[-1].append(call)
    return [sorted(group, key=lambda call: not call.weights) for group in groups]


def _with_order(function: relax.Function, groups: Sequence[Sequence[KernelCall]]) -> relax.Function:
    """A planned function with each group's calls where the last of them was: there all their arguments are known."""
    bindings = [binding for block in function.body.blocks for binding in block.bindings]
    calls = {call.place for group in groups for call in group}
    gathered = {max(call.place for call in group): group for group in groups if group}
    ordered = []
    for place, binding in enumerate(bindings):
        if place not in calls:
            ordered.append(binding)
        ordered += [bindings[call.place] for call in gathered.get(place, ())]
    body = relax.SeqExpr([relax.BindingBlock(ordered)], function.body.body)
    return relax.Function(function.params, body, function.ret_ty, function.is_pure, function.attrs)
