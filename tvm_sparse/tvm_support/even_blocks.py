"""Let no multiprocessor take more blocks of a kernel than its share.

Blocks of a kernel that begins early are put wherever there is room. While kernels in front still hold most of the GPU,
that is twice on some multiprocessors and never on others, and a kernel takes as long as the fullest of them. A block
that asks for so much shared memory that only its share fits can only be put evenly. Needless once CUDA spreads blocks
over what will be free.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.tirx.op import call_ffi_kernel

_SHARED = "tirx.use_dyn_shared_memory"
#: Multiprocessors of an arch's largest GPU. On a smaller one some blocks of a kernel come after others.
MULTIPROCESSORS = {"sm_90": 132, "sm_90a": 132}
#: Of a multiprocessor; of each block's share CUDA takes some for itself.
SHARED_BYTES, RESERVED_BYTES, THREADS, BLOCKS = 233472, 1024, 2048, 32
_ALIGNMENT = 16


def spread_blocks(module: tvm.IRModule, arch: str, beside: Collection[str] = ()) -> tvm.IRModule:
    """Raise the shared memory that kernels are launched with, in the host functions of a lowered module.

    Kernels without shared memory stay as they are: their blocks find room everywhere. So do the kernels `beside`, by
    name: they run beside those in front of them, in what room these leave.
    """
    if arch not in MULTIPROCESSORS:
        return module

    def raised(call: tvm.ir.Call) -> Any:
        if str(getattr(call.op, "name", "")) != "tirx.call_ffi_kernel":
            return call
        names = [str(name) for name in call.attrs.launch_params]
        if _SHARED not in names or call.args[0].value in beside:
            return call
        extents = dict(zip(names, map(int, call.args[-len(names) :]), strict=True))
        own_bytes = extents.pop(_SHARED)
        shared_bytes = even_bytes(extents, own_bytes, MULTIPROCESSORS[arch])
        if shared_bytes == own_bytes:
            return call
        return call_ffi_kernel(*call.args[:-1], tirx.IntImm("int64", shared_bytes), launch_params=names)

    changed = {
        variable: function.with_body(tvm_ffi.structural_map(function.body, (tvm.ir.Call, raised), order="post"))
        for variable, function in module.functions_items()
        if isinstance(function, tirx.PrimFunc)
    }
    return tvm.IRModule({**dict(module.functions_items()), **changed}, attrs=module.attrs)


def even_bytes(extents: dict[str, int], own_bytes: int, multiprocessors: int) -> int:
    """Shared memory for a block, of which no multiprocessor can then hold more than an even share.

    Parameters
    ----------
    extents : of the thread axes, by TVM's names
    own_bytes : what the kernel uses
    """
    blocks = threads = 1
    for name, extent in extents.items():
        if name.startswith("blockIdx"):
            blocks *= extent
        if name.startswith("threadIdx"):
            threads *= extent
    share = -(-blocks // multiprocessors)
    if share >= min(THREADS // threads, BLOCKS):
        return own_bytes
    too_many = SHARED_BYTES // (share + 1) - RESERVED_BYTES + _ALIGNMENT
    return max(own_bytes, too_many // _ALIGNMENT * _ALIGNMENT)
