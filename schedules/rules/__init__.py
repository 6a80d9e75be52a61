"""Schedules for every PrimFunc that is not a sparse or dense convolution template: one rule a file, a fallback last."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import tvm
from tvm import relax, tirx
from tvm.s_tir.dlight import ScheduleRule
from tvm.target import Target

from tvm_sparse.errors import CompileError
from tvm_sparse.schedules.rules.base import restore
from tvm_sparse.schedules.rules.cpu_elementwise import Elementwise
from tvm_sparse.schedules.rules.cpu_fallback import Fallback
from tvm_sparse.schedules.rules.cpu_linear import Linear
from tvm_sparse.schedules.rules.cpu_math import vectorizable_math
from tvm_sparse.schedules.rules.cpu_window import WindowRule
from tvm_sparse.schedules.rules.lowering import lowers

__all__ = ["apply_rules"]

logger = logging.getLogger(__name__)


def apply_rules(mod: tvm.IRModule, target: Target) -> tvm.IRModule:
    """Schedule every PrimFunc that does not carry `tirx.is_scheduled`.

    On a CPU a function stays serial when no rule's schedule lowers, and stays as it is when it is a mere reshape, which
    the Relax build turns into a view.

    Parameters
    ----------
    mod : tvm.IRModule
        A legalized (and usually fused) Relax module; all shapes static.
    target : tvm.target.Target
        Kind "llvm" or "cuda".

    Returns
    -------
    tvm.IRModule
        The same module with its PrimFuncs scheduled and marked `tirx.is_scheduled`; Relax functions are untouched.

    Raises
    ------
    CompileError
        No rule fits a function on CUDA.
    """
    result = mod.clone()
    rules = rules_for(target)
    for var, func in mod.functions_items():
        if isinstance(func, tirx.PrimFunc) and not func.attrs.get("tirx.is_scheduled", False):
            result.update_func(var, schedule_func(func, target, rules, var.name_hint))
    return result


def rules_for(target: Target) -> list[ScheduleRule]:
    """The rules of a target, in the order they are tried."""
    if target.kind.name == "cuda":
        from tvm_sparse.schedules.rules.cuda import cuda_rules

        return cuda_rules()
    return [Elementwise(), WindowRule(), Linear(), Fallback()]


def schedule_func(
    func: tirx.PrimFunc, target: Target, rules: Sequence[ScheduleRule], name: str = "the function"
) -> tirx.PrimFunc:
    """The schedule of the first rule that takes the function and whose result lowers; else the function itself.

    Raises
    ------
    CompileError
        No rule fits on CUDA, where an unscheduled function would touch device memory from the host.
    """
    if target.kind.name == "llvm" and relax.analysis.has_reshape_pattern(func):
        return func
    for rule in rules:
        try:
            sch = rule.apply(func, target, False)
        except Exception as error:  # a rule may meet any pattern; the next one is more general
            logger.debug("%s failed: %s", type(rule).__name__, error)
            continue
        if sch is None:
            continue
        scheduled = restore(sch.mod["main"], func).with_attr("tirx.is_scheduled", True)
        if target.kind.name == "llvm":
            scheduled = vectorizable_math(scheduled)
        if lowers(scheduled, target):
            return scheduled
        logger.debug("%s: the schedule does not lower", type(rule).__name__)
    if target.kind.name == "cuda":
        raise CompileError(f"no CUDA schedule fits {name}; report the operator, or compile for the CPU")
    logger.warning("no schedule rule fits %s; it stays serial", name)
    return func
