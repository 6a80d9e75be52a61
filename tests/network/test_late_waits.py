"""Which kernels wait at their end: independent branches of a network, and nothing that reads or writes too early."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from tvm import relax

from tests import cuda_on_cpu
from tests.cases import Case
from tests.network.onnx_models import model, tensor
from tests.network.running import silent
from tests.network.test_branches import CONSTANTS, INCEPTION, SIZE, C, op
from tests.schedules.running import GPU, kernel
from tvm_sparse.network import late_waits
from tvm_sparse.network.batches import batch_sizes, lower_batches
from tvm_sparse.network.build import lower_network
from tvm_sparse.network.capture import launches, outputs_as_parameters
from tvm_sparse.network.imported import bindings_of, variables_in
from tvm_sparse.network.late_waits import independent, late_functions, late_wait_pipeline, mark_late
from tvm_sparse.network.onnx_import import import_onnx
from tvm_sparse.network.order import as_neighbours
from tvm_sparse.network.planned import Access, KernelCall
from tvm_sparse.network.workspace import lift_workspaces
from tvm_sparse.tvm_support import cuda_target, pass_config
from tvm_sparse.tvm_support.dependent_launch import LATE_WAIT
from tvm_sparse.workload import ConvWorkload

WHOLE = Access("a")


def part(*slices: tuple[int, int], frame: str = "t", memory: str | None = "a") -> Access:
    return Access(memory, frame, slices)


@pytest.mark.parametrize(
    ("other", "meets"),
    [
        (WHOLE, True),
        (Access("b"), False),
        (Access(None), True),
        (part((0, 4)), False),
        (part((4, 8)), True),
        (part((0, 2), (3, 5)), True),
        (part((0, 4), frame="u"), True),
        (part((4, 8), memory="b"), False),
    ],
)
def test_accesses_that_may_touch_the_same_bytes(other: Access, meets: bool) -> None:
    assert part((4, 6), (7, 9)).meets(other) is meets is other.meets(part((4, 6), (7, 9)))


def calls(*texts: str) -> list[KernelCall]:
    """Calls as "name: read read > written, kernels"; memory by its name, and "t0" to "t9" slices of one tensor."""
    found = []
    for text in texts:
        name, rest = text.split(":")
        accesses, _, kernels = rest.partition(",")
        reads, _, writes = accesses.partition(">")
        found.append(KernelCall(name, _accesses(reads), _accesses(writes), int(kernels or 1)))
    return found


def _accesses(names: str) -> tuple[Access, ...]:
    return tuple(
        Access("t", "t", ((int(name[1]), int(name[1]) + 1),)) if name[0] == "t" and name[1:] else Access(name)
        for name in names.split()
    )


INCEPTION_CALLS = calls(
    "reduce: x > r s t0", "pool: x > p", "three: r > t1", "five: s > t2", "project: p > t3", "next: t > y"
)


@pytest.mark.parametrize(
    ("runs", "late"),
    [
        ([INCEPTION_CALLS], {"pool", "five", "project"}),
        ([[call] for call in INCEPTION_CALLS], set()),
        ([calls("a: x > y", "b: y > z", "c: z > x")], set()),
        ([calls("a: x > y", "b: z > w", "c: w > x")], {"b"}),
        ([calls("a: x > y", "b: z > y")], set()),
        ([calls("a: x > y", "b: z > x")], set()),
        # Of several kernels the first may wait late, and none but the last may still be running behind them.
        ([calls("a: x > y", "b: x > z, 2", "c: y > w", "d: z > v")], {"b", "c"}),
        ([calls("a: x > y", "b: x > z", "c: x > w", "d: y > v")], {"b", "c"}),
        # One place where it depends is enough.
        ([calls("a: x > y", "b: x > z"), calls("a: x > y", "b: y > z", "c: x > w")], {"c"}),
        ([calls("a: x > y", "b: x > z", "c: y > w"), calls("b: x > z", "c: v > w")], set()),
    ],
)
def test_independent_calls_wait_late(runs: list[list[KernelCall]], late: set[str]) -> None:
    assert late_functions(runs) == late
    # One more that waits early makes others only freer.
    assert late - {"b"} <= late_functions(runs, {"b"}) <= {call.function for run in runs for call in run} - {"b"}


@st.composite
def runs_of_calls(draw: st.DrawFn) -> list[list[KernelCall]]:
    accesses = st.one_of(
        st.builds(Access, st.sampled_from("abcdefgh")),
        st.builds(lambda first: Access("t", "t", ((first, first + 2),)), st.integers(0, 9)),
        st.just(Access(None)),
    )
    names = st.sampled_from([f"f{index}" for index in range(draw(st.integers(1, 12)))])
    some = st.lists(accesses, max_size=2).map(tuple)
    call = st.builds(KernelCall, names, some, some, st.integers(1, 2))
    return draw(st.lists(st.lists(call, max_size=8), min_size=1, max_size=2))


def must_be_over(kernels: Sequence[bool]) -> list[set[int]]:
    """By kernel, those that have certainly ended before it uses memory; `kernels` says which ones wait late.

    From what one kernel's begin and end say of its neighbour's, followed to the end.
    """
    after: dict[tuple[str, int], list[tuple[str, int]]] = {}
    for index, late in enumerate(kernels):
        after["work", index] = [("begin", index)] if late else [("end", index - 1)]
        after["let go", index] = [("begin", index)] if late else [("end", index - 1)]
        after["end", index] = [("work", index), *([("end", index - 1)] if late else [])]
        after["begin", index] = [("let go", index - 1)]
    over = []
    for index in range(len(kernels)):
        seen, left = set(), [("work", index)]
        while left:
            event = left.pop()
            if event not in seen:
                seen.add(event)
                left += after.get(event, [])
        over.append({other for what, other in seen if what == "end" and 0 <= other < index})
    return over


def test_what_is_over_before_a_kernel() -> None:
    assert must_be_over([False, False, True, True, False]) == [set(), {0}, {0}, {0}, {0, 1, 2, 3}]


@given(runs_of_calls(), st.sets(st.sampled_from(["f0", "f1", "f2"])))
def test_nothing_begins_beside_what_it_depends_on(runs: list[list[KernelCall]], never: set[str]) -> None:
    late = late_functions(runs, never)
    assert not late & never
    for run in runs:
        kernels = [(call, number == 0 and call.function in late) for call in run for number in range(call.kernels)]
        assert not kernels or not kernels[0][1]
        over = must_be_over([waits_late for _, waits_late in kernels])
        for index, (call, _) in enumerate(kernels):
            for other, (before, _) in enumerate(kernels[:index]):
                if before is not call and call.depends_on(before):
                    assert other in over[index]


def named(*groups: str) -> list[list[str]]:
    return [group.split() for group in groups]


@pytest.mark.parametrize(
    ("run", "pools", "groups"),
    [
        (INCEPTION_CALLS, "pool", named("reduce pool", "three five project", "next")),
        (calls("pool: x > p", "reduce: x > r", "three: r > y", "project: p > z"), "pool",
         named("reduce pool", "three project")),
        (calls("pool: x > p", "reduce: p > r"), "pool", named("pool", "reduce")),
        (calls("a: x > y", "b: x > z", "c: x > w"), "", named("a b c")),
        (calls("a: x > y", "b: x > z", "c: x > w"), "a b", named("c a b")),
    ],
)  # fmt: skip
def test_in_a_group_weights_come_first(run: list[KernelCall], pools: str, groups: list[list[str]]) -> None:
    run = [replace(call, weights=call.function not in pools.split()) for call in run]
    assert [[call.function for call in group] for group in independent(run)] == groups


@given(runs_of_calls(), st.data())
def test_what_depends_on_a_call_stays_behind_it(runs: list[list[KernelCall]], data: st.DataObject) -> None:
    for run in runs:
        placed = [replace(call, place=place, weights=data.draw(st.booleans())) for place, call in enumerate(run)]
        ordered = [call for group in independent(placed) for call in group]
        assert sorted(call.place for call in ordered) == list(range(len(run)))
        for index, call in enumerate(ordered):
            assert not any(call.depends_on(later) for later in ordered[index:] if later.place < call.place)


@pytest.fixture(scope="module")
def lowered() -> tuple[tvm.IRModule, dict[str, str]]:
    """A module of branches with something before and behind it, ready to be built, and the functions of its layers."""
    nodes = [
        op("Relu", "in", "s"),
        op("AveragePool", "s", "x", kernel_shape=[3, 3], pads=[1] * 4),
        *INCEPTION[:-1],
        op("Concat", "a b c d", "t", axis=1),
        op("Relu", "t", "y"),
    ]
    network = model(nodes, CONSTANTS, [tensor("in", (1, C, SIZE, SIZE))], ["y"])
    target = cuda_target("sm_90")
    module, layers = lower_network(import_onnx(network), target, "always", silent)
    with target:
        module = lift_workspaces(outputs_as_parameters(module, target))
    return module, {layer.name: layer.function for layer in layers}


def built(module: tvm.IRModule, cuda_graph: bool) -> tvm.IRModule:
    target = cuda_target("sm_90")
    with target, pass_config({"relax.backend.use_cuda_graph": cuda_graph}):
        return late_wait_pipeline(module, target)(module)


def late_in(module: tvm.IRModule) -> set[str]:
    functions = module.functions_items()
    return {name.name_hint for name, function in functions if function.attrs and LATE_WAIT in function.attrs}


def test_branches_of_a_module_wait_late(lowered: tuple[tvm.IRModule, dict[str, str]]) -> None:
    module, names = lowered
    reduce, project, three, five = (names[name] for name in ("m/c0 + c1 + c2", "m/c3", "m/d0", "m/d2"))
    late = late_in(built(module, True))
    assert late == {"max_pool2d", project, five} and not late & {reduce, three}
    assert late_in(built(module, False)) == set()  # their memory is not theirs for good


def test_a_module_comes_in_order(lowered: tuple[tvm.IRModule, dict[str, str]]) -> None:
    module, names = lowered
    planned = built(module, True)
    (captured,) = (function for name, function in planned.functions_items() if name.name_hint.endswith("_capture"))
    known = set(captured.params)
    for var, value in bindings_of(captured):
        assert set(variables_in(value)) <= known
        known.add(var)
    values = [value for _, value in bindings_of(captured) if isinstance(value, relax.Call)]
    called = [value.op.name_hint for value in values if isinstance(value.op, tvm.ir.GlobalVar)]
    convolutions = [names[name] for name in ("m/c0 + c1 + c2", "m/d0", "m/d2", "m/c3")]
    assert called == ["avg_pool2d", convolutions[0], "max_pool2d", *convolutions[1:]]


def test_the_pipeline_is_that_of_tvm_and_a_pass(
    lowered: tuple[tvm.IRModule, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _ = lowered
    monkeypatch.setattr(late_waits, "mark_late", lambda planned, written: planned)
    target = cuda_target("sm_90")
    with target, pass_config({"relax.backend.use_cuda_graph": True}):
        plain = relax.get_pipeline("default_build")(module)
    tvm.ir.assert_structural_equal(built(module, True), plain)


def test_a_function_of_unknown_outputs_writes_everything(lowered: tuple[tvm.IRModule, dict[str, str]]) -> None:
    module, _ = lowered
    target = cuda_target("sm_90")
    with target, pass_config({"relax.backend.use_cuda_graph": True}):
        planned = relax.get_pipeline("default_build")(module)
    # As if inputs were written too: the pool and what stands beside it read the same.
    assert late_in(mark_late(planned, {})) < late_in(built(module, True))


def test_every_batch_of_a_library_has_a_graph_of_its_own() -> None:
    nodes = [
        op("Relu", "in", "s"),
        op("AveragePool", "s", "x", kernel_shape=[3, 3], pads=[1] * 4),
        *INCEPTION[:-1],
        op("Concat", "a b c d", "t", axis=1),
        op("Relu", "t", "y"),
        op("Sigmoid", "x", "z"),
    ]
    networks = [model(nodes, CONSTANTS, [tensor("in", (n, C, SIZE, SIZE))], ["y", "z"]) for n in (1, 4)]
    models = [import_onnx(network) for network in networks]
    module, _ = lower_batches(models, batch_sizes(models, (1, 4)), GPU, "always", silent, None)[:2]
    with GPU, pass_config({"relax.backend.use_cuda_graph": True}):
        lifted = lift_workspaces(outputs_as_parameters(as_neighbours(module), GPU))
        late = late_in(late_wait_pipeline(lifted, GPU)(lifted))
    sizes = {int(lifted[name].params[0].shape[0]) for name in late}
    assert sizes == {1, 4}


@pytest.mark.parametrize(
    ("template", "changes", "kernels"),
    [
        ("cuda_pixel", {}, 1),
        ("cuda_pixel_nonzero", {"splits": 2, "split_over": "blocks"}, 2),
        ("cuda_pixel_nonzero", {"splits": 2, "split_over": "warps", "warps": 2, "blocks_per_warp": 2}, 1),
        ("cuda_pattern", {}, 1),
        ("cuda_dense", {"splits": 2}, 1),
    ],
)
def test_the_kernels_of_a_function_are_counted(template: str, changes: dict[str, int | str], kernels: int) -> None:
    case = Case(ConvWorkload(1, 16, 14, 14, 16, 3, 3, padding=(1, 1, 1, 1)), 0.2, "rows", 1)
    function = kernel(template, case, GPU, **changes).func
    source = cuda_on_cpu.cuda_source(function, GPU)
    assert len(set(re.findall(r"main_kernel\w*(?=\()", source))) == kernels == launches(function)
