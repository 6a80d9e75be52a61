"""Launch a library's kernels one by one, where TVM would launch the CUDA graph that it captured of most of them.

CUDA does not let a graph be launched into a stream that is captured. Kernels launched one by one it captures, and among
them those that read the inputs and write the outputs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_BUILTIN = "vm.builtin.cuda_graph.run_or_capture"
_replacing = threading.Lock()


class PlainLaunches:
    """A switch for one virtual machine, which has to be made while this is `installed`.

    Needs a runtime for CUDA to be loaded.
    """

    def __init__(self, tvm_ffi: Any) -> None:
        self._tvm_ffi = tvm_ffi
        self._on = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """A virtual machine looks its builtins up by their names, once, when it is made."""
        with _replacing:
            usual = self._tvm_ffi.get_global_func(_BUILTIN)
            invoke = self._tvm_ffi.get_global_func("vm.builtin.invoke_closure")

            def run(machine: Any, function: Any, arguments: Any, *which: Any) -> Any:
                if self._on:
                    return invoke(machine, function, *arguments)
                return usual(machine, function, arguments, *which)

            self._tvm_ffi.register_global_func(_BUILTIN, run, override=True)
            try:
                yield
            finally:
                self._tvm_ffi.register_global_func(_BUILTIN, usual, override=True)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Calls of the machine's functions launch kernel after kernel meanwhile; for one thread at a time."""
        self._on = True
        try:
            yield
        finally:
            self._on = False
