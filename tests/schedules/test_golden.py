"""The scheduled TIR of every template as text: a change of schedule shows in review."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tvm.target import Target

from tests.schedules.running import GPU
from tvm_sparse.schedules import template
from tvm_sparse.workload import ConvWorkload, Epilogue

WORKLOAD = ConvWorkload(1, 32, 14, 14, 16, 3, 3, padding=(1, 1, 1, 1), epilogue=Epilogue(bias=True, activation="relu"))
AVX512 = Target({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "skylake-avx512", "num-cores": 2})
NAMES = (
    "cpu_vector",
    "cuda_dense",
    "cuda_tensor",
    "cuda_pixel_nonzero",
    "cuda_pixel",
    "cuda_pattern",
    "cuda_jump",
    "cuda_row",
    "fallback",
)
KERNELS = {
    "cpu_vector": (AVX512, 0.1, {}),
    "cpu_vector_dense": (AVX512, 1.0, {}),
    "cuda_pixel": (GPU, 0.1, {"lanes": "1x2x16", "pixels": "1x7x1"}),
    "cuda_dense": (GPU, 1.0, {"pixels": "1x1x1", "vector": 4, "warps": 2, "splits": 1}),
    "cuda_dense_splits": (GPU, 1.0, {"pixels": "1x2x1", "vector": 4, "warps": 1, "splits": 2}),
    "cuda_dense_adjacent": (
        GPU,
        1.0,
        {"lanes": "1x2x16", "pixels": "1x2x1", "rows": "adjacent", "buffers": 1, "vector": 4, "warps": 2, "splits": 1},
    ),
    "cuda_pixel_flat": (GPU, 0.1, {"lanes": "flat", "pixels": "1x1x7"}),
    "cuda_pixel_dense": (GPU, 1.0, {}),
    "cuda_pixel_pairs": (GPU, 0.1, {"lanes": "1x2x16", "pixels": "1x7x1", "channels": 16, "pairs": "float16"}),
    "cuda_tensor": (GPU, 1.0, {"rows": 1, "pixel_tiles": 1, "channel_tiles": 1, "warps_along": 1, "warps_across": 1}),
    "cuda_pixel_nonzero": (
        GPU,
        0.1,
        {"split_over": "warps", "pixels": "1x1x1", "warps": 2, "blocks_per_warp": 2, "splits": 2},
    ),
    "cuda_pixel_nonzero_blocks": (GPU, 0.1, {"split_over": "blocks"}),
    "cuda_pattern": (GPU, 0.02, {"rows_per_group": 8, "stages": 2}),
    "cuda_jump": (
        GPU,
        0.1,
        {"lanes": "1x2x16", "pixels": "1x1x1", "channels": 16, "rows": 4, "warps": 2, "splits": 1},
    ),
    "cuda_jump_splits": (
        GPU,
        0.1,
        {"lanes": "1x2x16", "pixels": "1x2x1", "channels": 8, "rows": 4, "warps": 1, "splits": 2},
    ),
    "cuda_row": (GPU, 0.1, {"images": 2, "own_rows": 2, "chunks": 2, "unroll": 2}),
    "fallback": (AVX512, 0.1, {}),
    "fallback_cuda": (GPU, 0.1, {}),
}


@pytest.mark.parametrize("name", KERNELS)
def test_scheduled_tir(name, golden):
    target, density, changes = KERNELS[name]
    chosen = template(next(t for t in NAMES if t in name))
    workload = replace(WORKLOAD, n=2, dtype="float16") if "pairs" in changes else WORKLOAD
    workload = replace(WORKLOAD, n=2, c=640, h=1, w=1, r=1, s=1, padding=(0,) * 4) if name == "cuda_row" else workload
    workload = replace(WORKLOAD, c=3, stride=(2, 2), dtype="float16") if name == "cuda_tensor" else workload
    weight = np.ones(workload.filter_shape, np.float32)
    if density < 1:
        weight *= np.arange(weight.size).reshape(weight.shape) % round(1 / density) == 0
    knobs = {**chosen.default(workload, density, target), **changes}
    # Code that is called stands in strings, whose lines are to show as such.
    script = chosen.kernel(workload, weight, target, knobs).func.script().replace("\\n", "\n")
    golden(f"{name}.py.txt", script)
