"""Build for CUDA: the TVM target, our compile callback while a build runs, and the proof that machine code came out.

TVM's default callback knows one arch, and a build that bypasses it embeds source text without a word. Needless once
TVM takes a list of archs and fails where it cannot compile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tvm_sparse.cuda.archs import MAX_SHARED_MEMORY_BYTES, parse_archs
from tvm_sparse.errors import CompileError
from tvm_sparse.tvm_support.cuda_compilers import CudaCompiler, cuda_compiler
from tvm_sparse.tvm_support.cuda_runtime import enable_cuda
from tvm_sparse.tvm_support.dependent_launch import read_after_waiting
from tvm_sparse.tvm_support.fresh_places import with_fresh_places
from tvm_sparse.tvm_support.release_check import import_tvm

_CALLBACK = "tvm_callback_cuda_compile"


@dataclass
class CudaBuild:
    """A CUDA build under way: its target and archs, and the fat binaries compiled so far."""

    target: Any
    archs: tuple[str, ...]
    compiler: CudaCompiler
    binaries: list[bytes] = field(default_factory=list)


def cuda_target(archs: str | Iterable[str], *, host: str | dict[str, Any] = "llvm") -> Any:
    """The TVM target whose code runs on every one of the archs.

    Its arch is the lowest and its shared memory the smallest of them. Static shared arrays stay limited to 49152 bytes.

    Raises
    ------
    CompileError
        An arch is unknown; the message lists the known ones.
    """
    archs = parse_archs(archs)
    tvm = import_tvm()
    attributes = {
        "kind": "cuda",
        "arch": archs[0],
        "max_threads_per_block": 1024,
        "max_num_threads": 1024,
        "thread_warp_size": 32,
        "max_shared_memory_per_block": min(MAX_SHARED_MEMORY_BYTES[arch] for arch in archs),
    }
    return tvm.target.Target(attributes, host=host)


@contextmanager
def cuda_build(archs: str | Iterable[str], *, target: Any = None, compiler: str | None = None) -> Iterator[CudaBuild]:
    """While this is entered, `tvm.compile` for CUDA gives machine code for all the archs.

    It also enters the target, which TVM's passes ask for. Not for two threads at once: TVM's callback is global.

    Parameters
    ----------
    archs
        "sm_80,sm_90", or the names one by one.
    target
        By default `cuda_target(archs)`.
    compiler
        "nvcc" or "nvrtc" to insist on one.

    Raises
    ------
    CompileError
        An arch is unknown, CUDA's runtime library or a CUDA compiler is missing, or it refuses the code.
    """
    archs = parse_archs(archs)
    found = cuda_compiler(compiler)
    enable_cuda()
    import tvm_ffi

    build = CudaBuild(cuda_target(archs) if target is None else target, archs, found)
    failure: list[CompileError] = []

    def compile_source(source: str) -> bytearray:
        try:
            build.binaries.append(found.compile(with_fresh_places(read_after_waiting(source)), archs))
        except CompileError as error:
            failure.append(error)  # TVM hands it on as another exception, with its own stack trace for a message
            raise
        return bytearray(build.binaries[-1])

    before = tvm_ffi.get_global_func(_CALLBACK, allow_missing=True)
    tvm_ffi.register_global_func(_CALLBACK, compile_source, override=True)
    try:
        with build.target, asynchronous_copies():
            yield build
    except Exception:
        if failure:
            raise failure[0] from None
        raise
    finally:
        if before is None:
            tvm_ffi.remove_global_func(_CALLBACK)
        else:
            tvm_ffi.register_global_func(_CALLBACK, before, override=True)


@contextmanager
def pass_config(config: Mapping[str, Any]) -> Iterator[None]:
    """A pass context with this configuration, otherwise as the current one."""
    import tvm

    current = tvm.transform.PassContext.current()
    merged = {**dict(current.config), **config}
    with tvm.transform.PassContext(
        current.opt_level, list(current.required_pass), list(current.disabled_pass), config=merged
    ):
        yield


@contextmanager
def asynchronous_copies() -> Iterator[None]:
    """A pass context in which software pipelines copy with cp.async."""
    with pass_config({"tirx.use_async_copy": True}):
        yield


def check_cuda_modules(executable: Any, build: CudaBuild) -> None:
    """Prove that what was built holds machine code.

    Parameters
    ----------
    executable
        What `tvm.compile` returned.
    build
        The `cuda_build` it was compiled in.

    Raises
    ------
    CompileError
        A CUDA module holds source text, or was not compiled in this build.
    """
    modules = [module for module in _walk(executable.mod) if module.kind == "cuda"]
    # TVM's stand-in for a module it could not create can be stored but not run.
    if not all(module.is_runnable() for module in modules) or len(modules) > len(build.binaries):
        raise CompileError(f"TVM embedded CUDA source in place of machine code for {', '.join(build.archs)}")


def _walk(module: Any) -> Iterator[Any]:
    yield module
    for imported in module.imports:
        yield from _walk(imported)
