"""Time a compiled network beside dense frameworks that run its model: in one process, in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from tvm_sparse.deploy.batching import specs_for
from tvm_sparse.deploy.bound import BoundCall
from tvm_sparse.deploy.environment import collect_env
from tvm_sparse.deploy.runtime import Network
from tvm_sparse.errors import InputError
from tvm_sparse.network.importer import model_kind
from tvm_sparse.oracle import relative_error
from tvm_sparse.peers import candidates
from tvm_sparse.peers.candidates import ONNXRUNTIME, TORCH, Array, Candidate, Compiling, LineUp
from tvm_sparse.peers.interleave import (
    Call,
    Timing,
    cpu_sampler,
    gpu_sampler,
    interleave,
    paired_ratio,
    single_calls_us,
)
from tvm_sparse.peers.source import dense_model

PEERS = (TORCH, ONNXRUNTIME)
ROUNDS = 11
_OURS, _UNBOUND = "ours", "unbound"


@dataclass(frozen=True)
class CallTime:
    """Microseconds per call.

    Attributes
    ----------
    median_us, p10_us, p90_us : of calls one behind the other, over the rounds
    latency_us : one call on an idle device, until its outputs are there
    host_us : the same, until the host is free again
    """

    median_us: float
    p10_us: float
    p90_us: float
    latency_us: float
    host_us: float


@dataclass(frozen=True)
class PeerTime:
    """A dense framework in one form; `time` is None where it could not run, and `note` says why.

    `speed_up` is how many times faster the compiled network is: the median over the rounds of the ratio within a round.
    `relative_error` is the L2 norm of what its outputs differ from the reference's by, over that of these.
    """

    peer: str
    precision: str
    layout: str
    how: str
    time: CallTime | None
    speed_up: float | None
    relative_error: float | None
    note: str


@dataclass(frozen=True)
class Comparison:
    """A compiled network and its peers; `relative_error` is ours against `reference`.

    On a GPU torch's graphs read and write the same tensors each time, and so does `ours` (`Network.bind`). `unbound` is
    a call whose tensors may be others each time; None on a CPU, and where kernels lie in no CUDA graph.
    """

    model: str
    device: str
    threads: int | None
    rounds: int
    reference: str
    ours: CallTime
    unbound: CallTime | None
    relative_error: float
    peers: tuple[PeerTime, ...]
    environment: dict[str, Any] = field(default_factory=collect_env)


def compare(
    network: Network,
    model: Any,
    *,
    peer: str = TORCH,
    compiling: Compiling = Compiling(),  # noqa: B008 (frozen)
    rounds: int = ROUNDS,
    batch: int | None = None,
    seed: int = 0,
    tell: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Time a library beside the model it was compiled from, on one random input.

    Parameters
    ----------
    model
        What `tvm_sparse.compile` took. The peers multiply by its zeros, which costs what unpruned weights cost.
    peer
        "torch": on a GPU cuDNN in float32, TF32 and float16, in both layouts, replayed as CUDA graphs, which on a CPU
        is float32 in both layouts; or "onnxruntime", on a CPU.
    compiling
        Whether and how torch.compile is tried too.
    rounds
        How often every candidate is sampled, in turn.
    batch
        Of a library that serves several; by default the largest.

    Raises
    ------
    InputError
        The model is another one, the batch is not served, or the peer cannot run here.
    ModelError
        The model cannot be read, or holds what the peer does not know.
    LibraryError
        CUDA refuses to capture a call.
    """
    on_gpu = network.device != "cpu"
    if peer not in PEERS:
        raise InputError(f"no peer is called {peer!r}: choose one of {', '.join(PEERS)}")
    if rounds < 1:
        raise InputError(f"a comparison needs at least one round, not {rounds}")
    if peer == ONNXRUNTIME and on_gpu:
        raise InputError(f"{network.path} runs on {network.device}, onnxruntime on the CPU: compare it with torch")
    if peer == ONNXRUNTIME and model_kind(model) != ".onnx":
        raise InputError("onnxruntime runs .onnx models only: compare this one with torch")
    with candidates.torch_ready(network) if peer == TORCH else nullcontext():
        sampler = gpu_sampler if on_gpu else cpu_sampler
        tell("read the model")
        dense, inputs = dense_model(model, specs_for(network.metadata, batch)), network.random_inputs(seed, batch)
        if peer == TORCH:
            lineup = candidates.torch_lineup(network, dense, inputs, compiling, sampler, tell)
        else:
            lineup = candidates.onnxruntime_lineup(network, dense, inputs)
        arguments = network.to_device([inputs[spec.name] for spec in network.inputs])
        results = network.new_outputs(arguments)
        # On a CPU arrays go in and come out, as they do in onnxruntime.
        call: Call = (lambda: network.invoke(arguments, results)) if on_gpu else (lambda: network(**inputs))
        bound = network.bind(*arguments) if on_gpu and network.metadata.cuda_graph else None
        ours: dict[str, Call] = {_OURS: call} if bound is None else {_OURS: bound, _UNBOUND: call}
        running = {str(index): c.call for index, c in enumerate(lineup.candidates) if c.call is not None}
        tell(f"{rounds} rounds of {len(ours) + len(running)} candidates")
        timings = interleave({name: sampler(call) for name, call in {**ours, **running}.items()}, rounds)
        wait = _waiter(on_gpu)
        return Comparison(
            model=network.metadata.model,
            device=network.device,
            threads=network.threads,
            rounds=rounds,
            reference=lineup.reference,
            ours=_call_time(ours[_OURS], timings[_OURS], wait),
            unbound=_call_time(call, timings[_UNBOUND], wait) if bound else None,
            relative_error=max(
                _error(outputs, lineup.expected)
                for outputs in (list(network.run(inputs).values()), *([_bound_outputs(bound, batch)] if bound else []))
            ),
            peers=tuple(
                _row(candidate, timings.get(str(index)), timings[_OURS], wait, lineup)
                for index, candidate in enumerate(lineup.candidates)
            ),
        )


def _bound_outputs(bound: BoundCall, images: int | None) -> list[Array]:
    """What a bound call writes for so many images, of a network of several batches."""
    import torch

    outputs: list[Any] = [torch.from_dlpack(tensor) for tensor in bound.outputs]
    for output in outputs:
        output.fill_(float("nan") if output.is_floating_point() else 1)
    torch.cuda.synchronize()
    bound()
    torch.cuda.synchronize()
    return [output[:images].cpu().numpy() for output in outputs]


def _waiter(on_gpu: bool) -> Callable[[], None]:
    if not on_gpu:
        return lambda: None
    import torch

    return torch.cuda.synchronize


def _row(
    candidate: Candidate, timing: Timing | None, ours: Timing, wait: Callable[[], None], lineup: LineUp
) -> PeerTime:
    about = (candidate.peer, candidate.precision, candidate.layout, candidate.how)
    if timing is None or candidate.call is None:
        return PeerTime(*about, None, None, None, candidate.note)
    error = None if candidate.outputs is None else _error(candidate.outputs(), lineup.expected)
    time = _call_time(candidate.call, timing, wait)
    return PeerTime(*about, time, paired_ratio(timing, ours), error, candidate.note)


def _call_time(call: Call, timing: Timing, wait: Callable[[], None]) -> CallTime:
    return CallTime(timing.median_us, timing.quantile_us(0.1), timing.quantile_us(0.9), *single_calls_us(call, wait))


def _error(actual: Sequence[Array], expected: Sequence[Array]) -> float:
    """Of the output that differs most."""
    return max(relative_error(ours, theirs) for ours, theirs in zip(actual, expected, strict=True))
