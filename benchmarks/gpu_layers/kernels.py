"""A compiled kernel on a device: several copies of its code, its constants, and whether it computes the right thing."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_layers.build import Built
from benchmarks.gpu_layers.timing import COPIES
from tvm_sparse.workload import ConvWorkload

#: Largest ‖y − y64‖ / ‖y64‖ against float64, by the dtype of the data.
TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}


class CaseData:
    """Inputs and outputs of a convolution on a device: COPIES sets, and the float64 result of the first.

    `inputs` are (n, c, h, w) in the workload's dtype, standard normal, drawn from `seed`; `weight` is float32 on the
    host and is rounded to that dtype, as the kernel's own filter is.
    """

    def __init__(self, workload: ConvWorkload, weight: np.ndarray[Any, Any], device: Any, seed: int) -> None:
        import torch

        self.workload, self._torch = workload, torch
        dtype = getattr(torch, workload.dtype)
        generator = torch.Generator(device=device).manual_seed(seed)
        shape = (workload.n, workload.c, workload.h, workload.w)
        self.inputs = [torch.randn(shape, generator=generator, device=device).to(dtype) for _ in range(COPIES)]
        out_shape = (workload.n, workload.k, workload.p, workload.q)
        self.outputs = [torch.empty(out_shape, dtype=dtype, device=device) for _ in range(COPIES)]
        rounded = torch.from_numpy(weight).to(device).to(dtype).double()
        (top, left, bottom, right), first = workload.padding, self.inputs[0].double()
        padded = torch.nn.functional.pad(first, (left, right, top, bottom))
        self._reference = torch.nn.functional.conv2d(
            padded, rounded, stride=workload.stride, dilation=workload.dilation, groups=workload.groups
        )

    def error(self, y: Any) -> float:
        """Relative error of an output of the first input; NaN if the output has any."""
        difference = y.double().reshape(self._reference.shape) - self._reference
        return float(difference.norm() / self._reference.norm())


class LoadedKernel:
    """COPIES separately loaded copies of a kernel, so that launch i finds none of its code in the instruction cache."""

    def __init__(self, built: Built, data: CaseData) -> None:
        import torch
        import tvm

        self._data = data
        with tempfile.TemporaryDirectory() as folder:
            copies = [shutil.copy(built.library, Path(folder) / f"{i}{built.path.name}.so") for i in range(COPIES)]
            self._functions = [tvm.runtime.load_module(str(copy))["main"] for copy in copies]
        device = data.inputs[0].device
        constants = [
            torch.from_numpy(array).to(device, copy=True).view(getattr(torch, dtype))
            for array, dtype in zip(built.arrays(), built.constants, strict=True)
        ]
        # TVM's tensors point to the memory of torch's, which must outlive them.
        self._owners = constants
        self._arguments = [
            [tvm.runtime.from_dlpack(tensor) for tensor in (x, *constants, y)]
            for x, y in zip(data.inputs, data.outputs, strict=True)
        ]

    def launch(self, i: int) -> None:
        """Once, with the next copy and the next data: cold instruction cache."""
        self._functions[i % COPIES](*self._arguments[i % COPIES])

    def launch_same(self, i: int) -> None:
        """Once, with the same copy and the next data: warm instruction cache."""
        self._functions[0](*self._arguments[i % COPIES])

    def error(self) -> float:
        """The largest over the copies, each run on the first input into an output full of NaN."""
        out, errors = self._data.outputs[0], []
        for function in self._functions:
            out.fill_(float("nan"))
            function(*self._arguments[0])
            errors.append(self._data.error(out))
        return float(np.max(errors))  # NaN if any is, unlike the built-in
