"""What we are compared with, through torch: cuDNN, cuBLAS and cuSPARSE, each in its best form.

Products take the columns of an im2col, (c/groups·r·s, n·p·q), and give (k/groups, n·p·q); "_im2col" counts making the
columns from x (n, c, h, w) as well. float32 is strict: no TF32, but for the peer of that name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from benchmarks.gpu_layers.timing import COPIES, Launch, Timer, TimerError
from tvm_sparse.workload import ConvWorkload

#: dtype and whether TF32 is allowed.
CUDNN = {
    "cudnn_fp32": ("float32", False),
    "cudnn_tf32": ("float32", True),
    "cudnn_fp16": ("float16", False),
    "cudnn_bf16": ("bfloat16", False),
}
LAYOUTS = ("contiguous_format", "channels_last")
DENSE = (*CUDNN, "cublas", "cublas_im2col")
SPARSE = ("cusparse", "cusparse_im2col")


class Peers:
    """The peers of one layer: `inputs` are COPIES tensors (n, c, h, w), `weight` is (k, c/groups, r, s), all float32.

    Which values a dense weight has does not matter for its time; a sparse peer skips the zeros. `error` says how far an
    output (n, k, p, q) of the first input is from float64: it shows in which precision cuDNN computed.
    """

    def __init__(
        self,
        workload: ConvWorkload,
        inputs: list[Any],
        weight: np.ndarray[Any, Any],
        error: Callable[[Any], float] | None = None,
    ) -> None:
        import torch

        self._torch, self._workload, self._inputs, self._error = torch, workload, inputs, error
        self._weight = torch.from_numpy(weight).to(inputs[0].device)

    def measure(self, names: tuple[str, ...], timer: Timer) -> dict[str, dict[str, Any]]:
        """For each peer the Timing of its fastest form as a dict with "form", or {"skipped": why}."""
        found = {}
        for name in names:
            forms: dict[str, dict[str, Any]] = {}
            failures = []
            for form, make in self.forms(name).items():
                try:
                    forms[form] = self._measured(name, make, timer)
                except (TimerError, RuntimeError) as error:  # out of memory, or a shape it does not take
                    if timer.lost():
                        raise
                    failures.append(f"{form}: {str(error).splitlines()[0][:200]}")
            if forms:
                best = min(forms, key=lambda form: forms[form]["median_us"])
                found[name] = {"form": best, **forms[best]}
            else:
                found[name] = {"skipped": "; ".join(failures)}
        return found

    def _measured(self, name: str, make: Callable[[], Launch], timer: Timer) -> dict[str, Any]:
        from tvm_sparse.peers.torch_forms import precision_flags

        with precision_flags(tf32=CUDNN.get(name, ("float32", False))[1]):
            launch = make()
            found = asdict(timer.time(launch))
            if name in CUDNN:
                found["cold_l2_us"] = timer.time_cold(launch).median_us
                if self._error is not None:
                    found["error"] = self._error(launch(0))
            return found

    def forms(self, name: str) -> dict[str, Callable[[], Launch]]:
        """The forms of a peer: functions that prepare one."""
        if name in CUDNN:
            dtype = CUDNN[name][0]
            return {layout: partial(self._convolution, dtype, layout) for layout in LAYOUTS}
        product = self._dense_product if name.startswith("cublas") else self._sparse_product
        if not name.endswith("im2col"):
            return {"one product": lambda: self._product_of_columns(product())}
        forms: dict[str, Callable[[], Launch]] = {"one copy, one product": lambda: self._copy_then(product())}
        # Columns of single images, (n, c·r·s, p·q), are what torch's unfold makes and what a batched product takes.
        if name.startswith("cublas"):
            forms["unfold, batched product"] = self._unfold_then_batched
        elif self._workload.n == 1:
            forms["unfold, one product"] = lambda: self._unfold_then(product())
        return forms

    def _convolution(self, dtype: str, layout: str) -> Launch:
        torch, workload = self._torch, self._workload
        options = {"dtype": getattr(torch, dtype), "memory_format": getattr(torch, layout)}
        inputs = [x.to(**options, copy=True) for x in self._inputs]
        weight, padding = self._weight.to(**options), self._padding()
        outputs: list[Any] = [None] * COPIES

        def launch(i: int) -> Any:
            i %= COPIES
            outputs[i] = torch.nn.functional.conv2d(
                inputs[i], weight, None, workload.stride, padding, workload.dilation, workload.groups
            )
            return outputs[i]

        return launch

    def _dense_product(self) -> Callable[[Any], list[Any]]:
        """From columns (groups, c/groups·r·s, n·p·q) to one product a group."""
        rows = self._rows()
        return lambda columns: [self._torch.mm(row, column) for row, column in zip(rows, columns, strict=True)]

    def _sparse_product(self) -> Callable[[Any], list[Any]]:
        torch = self._torch
        rows = []
        for row in self._rows():
            csr = row.to_sparse_csr()
            indices = (csr.crow_indices().int(), csr.col_indices().int())
            rows.append(torch.sparse_csr_tensor(*indices, csr.values(), size=row.shape, check_invariants=False))
        return lambda columns: [torch.sparse.mm(row, column) for row, column in zip(rows, columns, strict=True)]

    def _product_of_columns(self, product: Callable[[Any], list[Any]]) -> Launch:
        columns = [self.columns(x) for x in self._inputs]
        return self._keeping(lambda i: product(columns[i]))

    def _copy_then(self, product: Callable[[Any], list[Any]]) -> Launch:
        return self._keeping(lambda i: product(self.columns(self._inputs[i])))

    def _unfold_then(self, product: Callable[[Any], list[Any]]) -> Launch:
        groups = self._workload.groups

        def launch(i: int) -> list[Any]:
            columns = self._unfolded(self._inputs[i])
            return product(columns.view(groups, -1, columns.shape[2]))

        return self._keeping(launch)

    def _unfold_then_batched(self) -> Launch:
        torch, n = self._torch, self._workload.n
        rows = [row.expand(n, *row.shape) for row in self._rows()]

        def launch(i: int) -> list[Any]:
            parts = self._unfolded(self._inputs[i]).chunk(len(rows), dim=1)
            return [torch.bmm(row, part) for row, part in zip(rows, parts, strict=True)]

        return self._keeping(launch)

    def columns(self, x: Any) -> Any:
        """The im2col of x: (groups, c/groups·r·s, n·p·q), one strided copy; of one image of a 1x1 layer, a view."""
        w = self._workload
        if any(w.padding):
            top, left, bottom, right = w.padding
            x = self._torch.nn.functional.pad(x, (left, right, top, bottom))
        image, channel, row, col = x.stride()
        strides = (channel, row * w.dilation[0], col * w.dilation[1], image, row * w.stride[0], col * w.stride[1])
        windows = x.as_strided((w.c, w.r, w.s, w.n, w.p, w.q), strides)
        return windows.reshape(w.groups, w.c_per_group * w.r * w.s, w.n * w.p * w.q)

    def _unfolded(self, x: Any) -> Any:
        w = self._workload
        if w.pointwise:
            return x.view(w.n, w.c, -1)
        return self._torch.nn.functional.unfold(x, (w.r, w.s), w.dilation, self._padding(), w.stride)

    def _rows(self) -> list[Any]:
        w = self._workload
        return list(self._weight.reshape(w.groups, w.k_per_group, w.c_per_group * w.r * w.s))

    def _padding(self) -> tuple[int, int]:
        top, left, bottom, right = self._workload.padding
        if (top, left) != (bottom, right):
            raise RuntimeError("torch pads opposite sides alike")
        return top, left

    @staticmethod
    def _keeping(call: Callable[[int], list[Any]]) -> Launch:
        """`call` with its last COPIES results kept, so that outputs rotate in memory as inputs do."""
        outputs: list[Any] = [None] * COPIES

        def launch(i: int) -> list[Any]:
            outputs[i % COPIES] = call(i % COPIES)
            return outputs[i % COPIES]

        return launch
