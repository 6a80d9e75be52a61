"""Calls that may run at once stand beside each other, and every value is there before it is read."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax, te

from tvm_sparse.network.imported import bindings_of, variables_in
from tvm_sparse.network.order import as_neighbours

TARGET = tvm.target.Target("llvm")


def network(*calls: str) -> tvm.IRModule:
    """A function of one input "x": calls as "y = a b" for y = 2a + b + 1, "y ~ a" for a view, "y := a" in place."""
    shape = (2, 3)
    a, b = te.placeholder(shape, name="a"), te.placeholder(shape, name="b")
    added = te.create_prim_func([a, b, te.compute(shape, lambda *at: 2 * a(*at) + b(*at) + 1)])
    builder = relax.BlockBuilder()
    add = builder.add_func(added.without_attr("global_symbol"), "add")
    type_ = relax.TensorType(shape, "float32")
    values = {"x": relax.Var("x", type_)}
    with builder.function("main", [values["x"]]):
        with builder.dataflow():
            for text in calls:
                name, kind, *read = text.split()
                arguments = [values[each] for each in read]
                if kind == "~":
                    call = relax.op.reshape(arguments[0], shape)
                elif kind == ":=":
                    call = relax.op.call_tir_inplace(add, [arguments[0]] * 3, [2], [type_])
                else:
                    call = relax.call_tir(add, arguments, out_ty=type_)
                values[name] = builder.emit(call, name)
            result = builder.emit_output(values[calls[-1].split()[0]])
        builder.emit_func_output(result)
    return builder.get()


def names(module: tvm.IRModule) -> list[str]:
    return [var.name for var, _ in bindings_of(module["main"])][:-1]


@pytest.mark.parametrize(
    ("calls", "order"),
    [
        # a residual block: the layer beside the other three
        (["i = x x", "a = i i", "b = a a", "d = i i", "c = b d"], "i a d b c"),
        (["i = x x", "a = i i", "b = a a", "v ~ i", "w ~ v", "d = w w", "c = b d"], "i a v w d b c"),
        (["i = x x", "v ~ i", "a = v v", "b = a a", "d = v v", "c = b d"], "i v a d b c"),
        (["i = x x", "a = i i", "b = a a", "e = b b", "d = i i", "c = e d"], "i a d b e c"),
        # branches stay in order
        (["i = x x", "a = i i", "b = i i", "c = i i", "s = a b", "t = s c"], "i a b c s t"),
        (["i = x x", "a = i i", "b = a a", "d = i i", "e = i i", "c = b d", "s = c e"], "i a d e b c s"),
        (["i = x x", "a = i i", "b = a a"], "i a b"),
        # nothing passes a call that writes in place
        (["i = x x", "a = i i", "b := a", "d = i i", "c = b d"], "i a b d c"),
    ],
)
def test_where_calls_stand(calls: list[str], order: str) -> None:
    assert names(as_neighbours(network(*calls))) == order.split()


@st.composite
def networks(draw: st.DrawFn) -> list[str]:
    calls, known = [], ["x"]
    for index in range(draw(st.integers(1, 9))):
        kind = draw(st.sampled_from(["=", "=", "=", "~"]))
        read = draw(st.lists(st.sampled_from(known[-5:]), min_size=2, max_size=2))
        calls.append(f"v{index} {kind} {' '.join(read[: 1 if kind == '~' else 2])}")
        known.append(f"v{index}")
    return calls


@settings(deadline=None, max_examples=40)
@given(networks())
def test_the_same_calls_in_an_order_that_works(calls: list[str]) -> None:
    module = network(*calls)
    ordered = as_neighbours(module)
    assert sorted(names(ordered)) == sorted(names(module))
    known = set(ordered["main"].params)
    for var, value in bindings_of(ordered["main"]):
        assert set(variables_in(value)) <= known
        known.add(var)


def test_results_stay() -> None:
    module = network("i = x x", "a = i i", "b = a x", "v ~ i", "d = v v", "e = i d", "c = b d", "s = c e")
    assert names(module) != names(as_neighbours(module))
    x = tvm.runtime.tensor(np.arange(6, dtype=np.float32).reshape(2, 3))
    results = [
        relax.VirtualMachine(tvm.compile(each, target=TARGET), tvm.cpu())["main"](x).numpy()
        for each in (module, as_neighbours(module))
    ]
    np.testing.assert_array_equal(*results)
