"""Every rule computes what onnxruntime computes, on a wide and a narrow CPU, on odd and tiny shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper

from tests.schedules.rules.programs import (
    Shapes,
    cpu_target,
    is_scheduled,
    onnx_model,
    prim_funcs,
    run_module,
    scheduled,
)

node = helper.make_node
rng = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) or 1)).astype("float32")


def ints(*values: int) -> np.ndarray:
    return np.array(values, "int64")


def conv(c: int, k: int, stride: int = 1, pad: int = 1, dilation: int = 1, groups: int | None = None) -> Any:
    return node(
        "Conv", ["x0", "w", "b"], ["t"], kernel_shape=[k, k], strides=[stride] * 2, pads=[pad] * 4,
        dilations=[dilation] * 2, group=c if groups is None else groups,
    )  # fmt: skip


def pool(kind: str, kernel: int, stride: int, **attributes: Any) -> Any:
    return node(kind, ["x0"], ["y"], kernel_shape=[kernel] * 2, strides=[stride] * 2, **attributes)


RELU, SILU = node("Relu", ["t"], ["y"]), [node("Sigmoid", ["t"], ["s"]), node("Mul", ["t", "s"], ["y"])]
X2 = np.array([1, 1, 2, 2], "float32")

CASES: dict[str, tuple[Shapes, list[Any], dict[str, np.ndarray]]] = {
    "add_relu": ([[1, 3, 5, 7]] * 2, [node("Add", ["x0", "x1"], ["t"]), RELU], {}),
    "add_parallel": ([[1, 33, 65, 63]] * 2, [node("Add", ["x0", "x1"], ["t"]), RELU], {}),
    "scale_shift": ([[2, 40, 61, 59]], [node("Mul", ["x0", "w"], ["t"]), RELU], {"w": weights(1, 40, 1, 1)}),
    "silu": ([[1, 5, 9, 9]], [node("Identity", ["x0"], ["t"]), *SILU], {}),
    "tanh_exp": ([[3, 77]], [node("Tanh", ["x0"], ["t"]), node("Exp", ["t"], ["y"])], {}),
    "hardswish": ([[1, 4, 7, 7]], [node("HardSwish", ["x0"], ["y"])], {}),
    "squeeze_excite": (
        [[1, 8, 9, 9], [1, 8, 1, 1]],
        [node("Sigmoid", ["x1"], ["t"]), node("Mul", ["x0", "t"], ["y"])],
        {},
    ),
    "concat": ([[1, 3, 5, 5], [1, 4, 5, 5], [1, 1, 5, 5]], [node("Concat", ["x0", "x1", "x2"], ["y"], axis=1)], {}),
    "concat_last": ([[2, 3], [2, 5]], [node("Concat", ["x0", "x1"], ["y"], axis=1)], {}),
    "pad": ([[1, 3, 5, 5]], [node("Pad", ["x0", "p"], ["y"])], {"p": ints(0, 0, 1, 2, 0, 0, 3, 4)}),
    "transpose": ([[1, 40, 33, 31]], [node("Transpose", ["x0"], ["y"], perm=[0, 2, 3, 1])], {}),
    "reshape": ([[1, 4, 3, 3]], [node("Flatten", ["x0"], ["t"]), RELU], {}),
    "shuffle": (
        [[1, 6, 5, 5]],
        [
            node("Reshape", ["x0", "a"], ["t"]),
            node("Transpose", ["t"], ["u"], perm=[0, 2, 1, 3, 4]),
            node("Reshape", ["u", "b"], ["y"]),
        ],
        {"a": ints(1, 2, 3, 5, 5), "b": ints(1, 6, 5, 5)},
    ),
    "slice": (
        [[1, 5, 9, 9]],
        [node("Slice", ["x0", "s", "e", "a", "d"], ["y"])],
        {"s": ints(1), "e": ints(8), "a": ints(2), "d": ints(3)},
    ),
    "where": ([[4, 9], [4, 9]], [node("Less", ["x0", "x1"], ["c"]), node("Where", ["c", "x0", "x1"], ["y"])], {}),
    "resize_nearest": (
        [[1, 3, 5, 7]],
        [
            node(
                "Resize",
                ["x0", "", "s"],
                ["y"],
                mode="nearest",
                nearest_mode="floor",
                coordinate_transformation_mode="asymmetric",
            )
        ],
        {"s": X2},
    ),
    "resize_linear": ([[1, 3, 5, 7]], [node("Resize", ["x0", "", "s"], ["y"], mode="linear")], {"s": X2}),
    "maxpool": ([[1, 3, 9, 11]], [pool("MaxPool", 3, 2, pads=[1] * 4)], {}),
    "maxpool_parallel": ([[2, 32, 57, 55]], [pool("MaxPool", 3, 2, pads=[1] * 4)], {}),
    "maxpool_dilated": ([[1, 2, 13, 13]], [pool("MaxPool", 3, 1, dilations=[2, 2])], {}),
    "maxpool_ceil": ([[1, 2, 8, 8]], [pool("MaxPool", 3, 2, ceil_mode=1)], {}),
    "maxpool_even": ([[1, 3, 8, 8]], [pool("MaxPool", 2, 2)], {}),
    "avgpool": ([[1, 3, 7, 7]], [pool("AveragePool", 3, 1, pads=[1] * 4)], {}),
    "avgpool_include": ([[1, 3, 7, 7]], [pool("AveragePool", 3, 2, pads=[1] * 4, count_include_pad=1)], {}),
    "avgpool_1d": ([[1, 3, 17]], [node("AveragePool", ["x0"], ["y"], kernel_shape=[4], strides=[3])], {}),
    "maxpool_3d": ([[1, 2, 6, 6, 6]], [node("MaxPool", ["x0"], ["y"], kernel_shape=[2] * 3, strides=[2] * 3)], {}),
    "global_average": ([[2, 5, 7, 7]], [node("GlobalAveragePool", ["x0"], ["y"])], {}),
    "global_max": ([[1, 5, 7, 3]], [node("GlobalMaxPool", ["x0"], ["y"])], {}),
    "lrn": ([[1, 6, 5, 5]], [node("LRN", ["x0"], ["y"], size=3)], {}),
    "depthwise": ([[1, 5, 9, 9]], [conv(5, 3), RELU], {"w": weights(5, 1, 3, 3), "b": weights(5)}),
    "depthwise_stride": ([[2, 5, 9, 10]], [conv(5, 3, stride=2), RELU], {"w": weights(5, 1, 3, 3), "b": weights(5)}),
    "depthwise_silu": ([[1, 4, 17, 17]], [conv(4, 5, pad=2), *SILU], {"w": weights(4, 1, 5, 5), "b": weights(4)}),
    "depthwise_dilated": (
        [[1, 4, 15, 15]],
        [conv(4, 3, pad=2, dilation=2), RELU],
        {"w": weights(4, 1, 3, 3), "b": weights(4)},
    ),
    "depthwise_multiplier": ([[1, 4, 7, 7]], [conv(4, 3), RELU], {"w": weights(12, 1, 3, 3), "b": weights(12)}),
    "depthwise_parallel": ([[1, 64, 28, 28]], [conv(64, 3), RELU], {"w": weights(64, 1, 3, 3), "b": weights(64)}),
    "conv": ([[1, 4, 7, 7]], [conv(1, 3, stride=2, groups=1), RELU], {"w": weights(6, 4, 3, 3), "b": weights(6)}),
    "conv_3d": (
        [[1, 3, 5, 6, 7]],
        [node("Conv", ["x0", "w"], ["y"], kernel_shape=[3] * 3, pads=[1] * 6)],
        {"w": weights(4, 3, 3, 3, 3)},
    ),
    "conv_transpose": (
        [[1, 4, 5, 7]],
        [node("ConvTranspose", ["x0", "w"], ["y"], kernel_shape=[4, 4], strides=[2, 2], pads=[1] * 4)],
        {"w": weights(4, 3, 4, 4)},
    ),
    "gemm_1": (
        [[1, 96]],
        [node("Gemm", ["x0", "w", "b"], ["t"], transB=1), RELU],
        {"w": weights(40, 96), "b": weights(40)},
    ),
    "gemm_parallel": (
        [[1, 512]],
        [node("Gemm", ["x0", "w", "b"], ["y"], transB=1)],
        {"w": weights(1000, 512), "b": weights(1000)},
    ),
    "gemm_8": ([[8, 96]], [node("Gemm", ["x0", "w", "b"], ["y"])], {"w": weights(96, 80), "b": weights(80)}),
    "gemm_odd": ([[7, 13]], [node("Gemm", ["x0", "w", "b"], ["y"])], {"w": weights(13, 11), "b": weights(11)}),
    "gemm_dynamic": ([[3, 24], [17, 24]], [node("Gemm", ["x0", "x1"], ["y"], transB=1)], {}),
    "matmul_batched": ([[2, 3, 8, 16], [2, 3, 16, 24]], [node("MatMul", ["x0", "x1"], ["y"])], {}),
    "softmax": ([[1, 1000]], [node("Softmax", ["x0"], ["y"])], {}),
    "softmax_channels": ([[1, 5, 9, 9]], [node("Softmax", ["x0"], ["y"], axis=1)], {}),
    "softmax_prime": ([[3, 101]], [node("Softmax", ["x0"], ["y"])], {}),
    "layer_norm": (
        [[1, 7, 48]],
        [node("LayerNormalization", ["x0", "w", "b"], ["y"])],
        {"w": weights(48), "b": weights(48)},
    ),
    "reduce_all": ([[2, 3, 5]], [node("ReduceMean", ["x0"], ["y"], keepdims=0, axes=[0, 1, 2])], {}),
    "reduce_outer": ([[6, 33]], [node("ReduceMax", ["x0"], ["y"], axes=[0])], {}),
    "reduce_middle": ([[2, 9, 20]], [node("ReduceMean", ["x0"], ["y"], axes=[1])], {}),
    "argmax": ([[4, 50]], [node("ArgMax", ["x0"], ["y"], axis=1)], {}),
    "split": ([[1, 6, 4, 4]], [node("Split", ["x0"], ["a", "b"], axis=1), node("Mul", ["a", "b"], ["y"])], {}),
}


def reference(model: Any, feeds: list[np.ndarray]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {f"x{n}": feed for n, feed in enumerate(feeds)})[0]


@pytest.mark.parametrize("cpu", [None, "x86-64"], ids=["this-cpu", "sse2"])
@pytest.mark.parametrize("name", CASES)
def test_semantics(name: str, cpu: str | None) -> None:
    shapes, nodes, constants = CASES[name]
    model = onnx_model(shapes, nodes, opset=17, **constants)
    feeds = [rng.standard_normal(s).astype("float32") for s in shapes]
    target = cpu_target(cpu)
    result = run_module(scheduled(model, target), target, feeds)
    expected = reference(model, feeds)
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", [n for n in CASES if n not in ("reshape", "shuffle", "split")])
def test_everything_is_scheduled(name: str) -> None:
    shapes, nodes, constants = CASES[name]
    target = cpu_target()
    functions = prim_funcs(scheduled(onnx_model(shapes, nodes, **constants), target))
    assert functions and all(is_scheduled(f) for f in functions.values())
