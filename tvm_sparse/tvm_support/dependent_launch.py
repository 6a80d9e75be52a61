"""Let a kernel begin before the one in front of it has ended: CUDA's programmatic dependent launch.

To begin and to end takes a kernel about a microsecond. Launched so, its blocks are on the GPU already, copy what no
kernel writes, and wait until everything in front of them is done and visible. Every kernel waits, so what is in front
of its neighbour is done too, and memory may be used again. TVM 0.27 has the launch attribute but no pass that sets it;
needless once it has one. GPUs before sm_90 cannot do this.

A kernel that depends on none of those that may still run when it begins waits late: at its end, and lets the next one
begin at its start. Why that is sound: its blocks come only after every block of its neighbour in front was there and
let it begin. If the neighbour waits at its start, it did that behind its wait: all in front of it is done and visible,
and it alone may still run. If it waits late, the same holds of its own neighbour; so what may still run is every kernel
from the last one on that waits at its start, and those are the ones not to depend on. The next kernel that waits at its
start waits for the end of its neighbour, which ends only after the one in front of it, and so on. What was done before
is in memory, for a kernel saw it behind its wait; a fence keeps a late one from older contents that its multiprocessor
may hold. Blocks wait only for kernels all of whose blocks are there already, so never for room.

What such a kernel reads of other kernels must not be declared `__restrict__`: the compiler would take it for constant
as long as the kernel runs, and might read it before the wait. Weights stay so declared, and are read before.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from tvm_sparse.cuda.archs import sm_number
from tvm_sparse.errors import CompileError

PIPELINE = "tvm_sparse_dependent_launch"
FIRST_ARCH = "sm_90"
_PARAMETERS = "tirx.kernel_launch_params"
_DEPENDENT = "tirx.use_programtic_dependent_launch"  # as TVM spells it
_LAST = "tirx.use_dyn_shared_memory"
#: Of a function of Relax: its first kernel waits late. `network.late_waits` finds those.
LATE_WAIT = "tvm_sparse.late_wait"
_NAME = "wait_for_kernels_in_front"
_BEGIN, _END = "begin_beside_kernels_in_front", "end_behind_kernels_in_front"
_WAIT = f"""
__forceinline__ __device__ void {_NAME}() {{
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ >= 900)
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}}
"""
_BEGIN_LATE = f"""
__forceinline__ __device__ void {_BEGIN}() {{
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ >= 900)
  asm volatile("griddepcontrol.launch_dependents;");
  asm volatile("fence.acq_rel.gpu;" ::: "memory");
#endif
}}
"""
#: A kernel has ended once all of its blocks have: the others leave their room to the next one.
_END_LATE = f"""
__forceinline__ __device__ void {_END}() {{
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ >= 900)
  if (blockIdx.x == 0 && blockIdx.y == 0 && blockIdx.z == 0) asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}}
"""
#: Of the build under way, as CUDA names them: TVM's callback is handed the source and nothing else.
_weights: dict[str, set[str]] = {}
_SIGNATURE = re.compile(r'^extern "C" __global__ [^\n]*?(\w+)\(([^\n()]*)\)(;| \{)$', re.MULTILINE)


def can_overlap(archs: Sequence[str]) -> bool:
    """Whether all these GPUs know of this."""
    return all(sm_number(arch) >= sm_number(FIRST_ARCH) for arch in archs)


def pays_to_overlap(arch: str, batch: int) -> bool:
    """Whether it is the default for networks of so many images a call; `arch` may also be that of a CPU."""
    return arch.removesuffix("a") == FIRST_ARCH and batch == 1


def dependent_launch_pipeline(archs: Sequence[str], weights: Mapping[str, Iterable[str]]) -> str:
    """The name of the pipeline for `tvm.compile(tir_pipeline=...)`, in a `cuda_build`.

    Parameters
    ----------
    weights
        By the name of a function, the names of those of its parameters that nothing ever writes.

    Raises
    ------
    CompileError
        An arch cannot do this.
    """
    from tvm import tirx

    if old := [arch for arch in archs if not can_overlap([arch])]:
        raise CompileError(f"kernels that overlap need {FIRST_ARCH} or later: compile for {old[0]} without")
    tirx.register_tir_pipeline(PIPELINE, lambda: _pipeline(archs[0]))
    _weights.clear()
    _weights.update({name: {f"{parameter}_ptr" for parameter in parameters} for name, parameters in weights.items()})
    return PIPELINE


def constant_names(function: Any, arrays: int) -> set[str]:
    """The parameters that nothing writes, of a kernel (x, the arrays of the filter, [bias], [residual], out)."""
    names = [str(parameter.name) for parameter in function.params]
    return {*names[1 : 1 + arrays], *({"bias"} & set(names))}


def read_after_waiting(source: str) -> str:
    """TVM's CUDA source with `__restrict__` only on weights and what is written, in each kernel that waits."""
    kept: dict[str, list[str]] = {}
    for signature in _SIGNATURE.finditer(source):
        body = source[signature.end() : source.find("\n}", signature.end())]
        if signature[3] != ";" and (f"{_NAME}();" in body or f"{_BEGIN}();" in body):
            pointers = re.findall(r"__restrict__ (\w+)", signature[2])
            stores = set(re.findall(r"^ *(?:(\w+)\[|\*\(\w+\*\)\((\w+) )", body, re.MULTILINE))
            stored = {name for pair in stores for name in pair}
            stored |= _weights.get(_function_of(signature[1]), set())
            kept[signature[1]] = [pointer for pointer in pointers if pointer in stored]

    def declare(match: re.Match[str]) -> str:
        if match[1] not in kept:
            return match[0]
        read = [name for name in re.findall(r"__restrict__ (\w+)", match[2]) if name not in kept[match[1]]]
        parameters = match[2]
        for name in read:
            parameters = re.sub(rf"__restrict__ {name}\b", name, parameters)
        return match[0].replace(match[2], parameters)

    # Nor may PTX take for constant what it reads.
    return _SIGNATURE.sub(declare, source).replace("ld.global.nc.", "ld.global.") if kept else source


def _pipeline(arch: str) -> Any:
    import tvm

    from tvm_sparse.tvm_support.even_blocks import spread_blocks

    lower, finalize_host, finalize_device = tvm.tirx.get_tir_pipeline("default")
    late: set[str] = set()

    def lowered(module: Any) -> Any:
        late.update(_late_kernels(module))
        return spread_blocks(lower(module), arch, late)

    mark = tvm.tirx.transform.prim_func_pass(lambda function, _module, _: _dependent(function, late), opt_level=0)
    return lowered, finalize_host, lambda: tvm.transform.Sequential([mark, finalize_device()])


def _late_kernels(module: Any) -> set[str]:
    """The names of the kernels that wait late: of several in a function the first."""
    functions = module.functions_items()
    late = [name.name_hint for name, function in functions if function.attrs and LATE_WAIT in function.attrs]
    return {f"{name}_kernel" for name in late}


def _dependent(function: Any, late: Collection[str]) -> Any:
    """A kernel that waits, with the launch attribute where TVM's runtime looks for it."""
    from tvm import tirx
    from tvm.backend.cuda.op import cuda_func_call

    from tvm_sparse.tvm_support.early_loads import load_early, stored_to
    from tvm_sparse.tvm_support.grouped_loads import group_loads

    if _PARAMETERS not in function.attrs:
        return function
    given = [str(name) for name in function.attrs[_PARAMETERS]]
    names = [*(name for name in given if name != _LAST), _DEPENDENT, *(name for name in given if name == _LAST)]
    kernel = str(function.attrs["global_symbol"])
    weights = _weights.get(_function_of(kernel), set())
    constant = {parameter for parameter in function.params if parameter.name in weights}
    memory = {parameter for parameter in function.params if parameter.name not in weights}
    _add_declared(function.body, constant, memory)
    written = memory & stored_to(function.body)
    early = load_early(function.body, constant, memory - written, written)
    body = early.body if early.constants or early.others else group_loads(early.body, memory - written, written)
    if kernel in late:
        begin = tirx.Evaluate(cuda_func_call(_BEGIN, source_code=_BEGIN_LATE))
        end = tirx.Evaluate(cuda_func_call(_END, source_code=_END_LATE))
        body = _wait_before_use(body, memory, [*early.constants, *early.others])
        body = _between(begin, body, end)
    else:
        wait = tirx.Evaluate(cuda_func_call(_NAME, source_code=_WAIT))
        body = _wait_before_use(body, memory, [*early.constants, wait, *early.others])
    return function.with_body(body).with_attr(_PARAMETERS, names)


def _add_declared(body: Any, *memories: set[Any]) -> None:
    """Add to each set of parameters the buffers that are declared to lie there."""
    import tvm_ffi
    from tvm import tirx

    def declare(statement: tirx.DeclBuffer) -> None:
        for memory in memories:
            if statement.data in memory:
                memory.add(statement.buffer)

    tvm_ffi.structural_walk(body, (tirx.DeclBuffer, declare), order="pre")


def _function_of(kernel: str) -> str:
    """The name of the function that a kernel is of."""
    return re.sub(r"_kernel(_\d+)?$", "", kernel)


def _wait_before_use(statement: Any, memory: set[Any], waiting: list[Any]) -> Any:
    """The statement, waiting at the last place that all threads come to before any of them uses this memory."""
    from tvm import tirx

    from tvm_sparse.tvm_support.statements import in_sequence

    if isinstance(statement, tirx.AttrStmt):
        body = _wait_before_use(statement.body, memory, waiting)
        return tirx.AttrStmt(statement.node, statement.attr_key, statement.value, body)
    if not isinstance(statement, tirx.SeqStmt):
        return in_sequence([*waiting, statement])
    parts = list(statement.seq)
    last = len(parts) - 1
    at = next((at for at, part in enumerate(parts) if _uses(part, memory)), last)
    parts[at] = _wait_before_use(parts[at], memory, waiting)
    return in_sequence(parts)


def _between(first: Any, statement: Any, last: Any) -> Any:
    """The statement with another one before and one behind it, which all threads run."""
    from tvm import tirx

    from tvm_sparse.tvm_support.statements import in_sequence

    if isinstance(statement, tirx.AttrStmt):
        body = _between(first, statement.body, last)
        return tirx.AttrStmt(statement.node, statement.attr_key, statement.value, body)
    return in_sequence([first, statement, last])


def _uses(statement: Any, memory: set[Any]) -> bool:
    import tvm_ffi
    from tvm import tirx

    if isinstance(statement, tirx.DeclBuffer):
        return False
    used: list[Any] = []
    tvm_ffi.structural_walk(statement, (tirx.Var, used.append), order="pre")
    return any(var in memory for var in used)
