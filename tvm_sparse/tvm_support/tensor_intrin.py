"""Do without TVM's table of tensor intrinsics, which takes 40 seconds to import.

MetaSchedule imports tvm.s_tir.tensor_intrin whenever a tuning context is made, for schedules that use its intrinsics;
ours use none. Needless once that import is quick.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from tvm_sparse.tvm_support.release_check import import_tvm

_NAME = "tvm.s_tir.tensor_intrin"


@contextmanager
def without_tensor_intrinsics() -> Iterator[None]:
    """While this is entered, importing the table gives an empty module, unless it was imported before."""
    import_tvm()
    import tvm.s_tir

    if _NAME in sys.modules:
        yield
        return
    sys.modules[_NAME] = tvm.s_tir.tensor_intrin = ModuleType(_NAME)
    try:
        yield
    finally:
        del sys.modules[_NAME], tvm.s_tir.tensor_intrin
