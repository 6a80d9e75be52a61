"""What we are compared with computes the same convolution."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.gpu_layers.peers import DENSE, SPARSE, Peers
from benchmarks.gpu_layers.timing import COPIES, TimerError
from tests.benchmarks.gpu_layers.stand_ins import FakeTimer
from tvm_sparse import oracle
from tvm_sparse.workload import ConvWorkload

torch = pytest.importorskip("torch")
WORKLOADS = {
    "3x3": ConvWorkload(2, 6, 7, 9, 8, 3, 3, padding=(1, 1, 1, 1)),
    "1x1 batch": ConvWorkload(3, 6, 5, 5, 8, 1, 1),
    "1x1": ConvWorkload(1, 6, 5, 5, 8, 1, 1),
    "strided": ConvWorkload(1, 4, 9, 9, 6, 5, 3, (2, 3), (2, 1, 2, 1)),
    "strided 1x1": ConvWorkload(2, 4, 8, 8, 6, 1, 1, (2, 2)),
    "grouped": ConvWorkload(2, 6, 7, 7, 4, 3, 3, padding=(1, 1, 1, 1), groups=2),
    "dilated": ConvWorkload(1, 4, 9, 9, 6, 3, 3, padding=(2, 2, 2, 2), dilation=(2, 2)),
}


def setting(workload):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(workload.filter_shape).astype(np.float32)
    weight[rng.random(weight.shape) < 0.6] = 0
    xs = [
        rng.standard_normal((workload.n, workload.c, workload.h, workload.w)).astype(np.float32) for _ in range(COPIES)
    ]
    return Peers(workload, [torch.from_numpy(x) for x in xs], weight), xs, weight


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
@pytest.mark.parametrize("name", [*DENSE, *SPARSE])
def test_every_form_of_every_peer_is_right(workload, name):
    peers, xs, weight = setting(workload)
    for form, make in peers.forms(name).items():
        launch = make()
        for i in range(COPIES):
            launch(i)
        y = launch(COPIES + 2)
        options = {name: getattr(workload, name) for name in ("stride", "padding", "dilation", "groups")}
        expected = oracle.conv2d(xs[2], weight, **options)
        if isinstance(y, list):  # of each group (k, n·p·q), or (n, k, p·q) of a batched product
            pixels = workload.p * workload.q
            parts = [part.movedim(0, 1) if part.ndim == 3 else part.view(-1, workload.n, pixels) for part in y]
            y = torch.cat(parts).movedim(1, 0).reshape(expected.shape)
        tolerance = {"cudnn_fp16": 2e-3, "cudnn_bf16": 2e-2}.get(name, 1e-5)
        assert oracle.relative_error(y.float().numpy(), expected) < tolerance, form


def test_the_fastest_form_is_quoted_and_failures_are_reasons():
    class Failing(FakeTimer):
        def time(self, launch):
            timing = super().time(launch)
            if self.us < 100:
                raise TimerError("out of memory\nmore")
            return timing

    peers, _, _ = setting(WORKLOADS["3x3"])
    found = peers.measure(("cublas", "cublas_im2col"), FakeTimer())
    assert found["cublas"]["form"] == "one product" and found["cublas"]["median_us"] == 2
    assert found["cublas_im2col"]["form"] == "one copy, one product", "the fake timer doubles"
    found = peers.measure(("cublas", "cusparse"), Failing())
    assert found["cublas"] == {"skipped": "one product: out of memory"}


def test_strict_float32_and_tf32_differ_in_what_they_allow():
    seen = {}

    class Looking(FakeTimer):
        def time(self, launch):
            seen[self.name] = (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
            assert torch.backends.cudnn.benchmark
            return super().time(launch)

    before = (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark)
    peers, _, _ = setting(WORKLOADS["1x1"])
    for name in ("cudnn_fp32", "cudnn_tf32", "cublas", "cublas_im2col"):
        timer = Looking()
        timer.name = name
        peers.measure((name,), timer)
    assert seen == {
        "cudnn_fp32": (False, False),
        "cudnn_tf32": (True, True),
        "cublas": (False, False),
        "cublas_im2col": (False, False),
    }
    assert before == (
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.benchmark,
    )
