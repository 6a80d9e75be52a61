"""Refuse the tvm-ffi releases that crash TVM 0.27.

apache-tvm 0.27.0.post1 asks for apache-tvm-ffi >= 0.1.14.post0, but from 0.1.15 on `tvm.ir.save_json` of any TIR
expression ends in a segmentation fault, so pickling a module and MetaSchedule's database do too. Needless once an
apache-tvm release pins the tvm-ffi it was built with.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import threading
from types import ModuleType

from tvm_sparse.errors import CompileError
from tvm_sparse.tvm_support.thread_pool import widen_thread_pool

TVM_SERIES = "0.27."
FFI_SERIES = "0.1.14."
_state = threading.local()  # TVM has one pool per calling thread
PIN = 'pip install "apache-tvm==0.27.0.post1" "apache-tvm-ffi==0.1.14.post1"'


def import_tvm() -> ModuleType:
    """Import TVM if the installed releases work together, and let it use every CPU this process may.

    Returns
    -------
    module
        `tvm`.

    Raises
    ------
    CompileError
        apache-tvm or apache-tvm-ffi is missing or another release; the message holds the pip command.
    """
    for package, series in (("apache-tvm", TVM_SERIES), ("apache-tvm-ffi", FFI_SERIES)):
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise CompileError(f"{package} is not installed: {PIN}") from None
        if not version.startswith(series):
            raise CompileError(f"{package} {version} does not work here ({series}* does): {PIN}")
    try:
        tvm = importlib.import_module("tvm")
    except (ImportError, OSError) as error:
        raise CompileError(f"apache-tvm cannot be imported ({error}): {PIN}") from error
    if not getattr(_state, "widened", False):
        widen_thread_pool(tvm)
        _state.widened = True
    return tvm
