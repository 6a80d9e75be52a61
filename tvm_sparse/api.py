"""The calls a user makes: compile, inspect, tune, verify."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_sparse.compiled import CompiledNetwork, metadata_of
from tvm_sparse.errors import InputError, LibraryError, VerificationError
from tvm_sparse.verification import Verification, compare, compare_batches

if TYPE_CHECKING:
    from tvm_sparse.deploy import BatchSizes
    from tvm_sparse.deploy.buckets import Batch
    from tvm_sparse.network.imported import ImportedModel
    from tvm_sparse.network.inspection import LayerSummary
    from tvm_sparse.tuning.lookup import KnownKernels
    from tvm_sparse.tuning.trials import Tally
    from tvm_sparse.tuning.tuner import TunedLayer

#: What can be compiled: a path to .onnx or .pt2, an onnx.ModelProto, a torch ExportedProgram.
Model = Any
#: The log that comes with this package.
SHIPPED = "shipped"
#: Trials of each layer where nobody says when to stop.
DEFAULT_TRIALS = 64


def compile(
    model: Model,
    *,
    target: str = "llvm",
    arch: str | Sequence[str] | None = None,
    mcpu: str | None = None,
    sparse: str = "auto",
    precision: str = "float32",
    batch: Batch | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    threads: int | None = None,
    log: str | Path | None = SHIPPED,
    cuda_graph: bool = True,
    overlap: bool | None = None,
    verify: bool = True,
    tolerance: float = 1e-4,
    progress: Callable[[str, float], None] | None = None,
) -> CompiledNetwork:
    """Compile a pruned network, its convolutions on their nonzeros only.

    Parameters
    ----------
    model : path of an .onnx or .pt2 file, an onnx.ModelProto, or a torch.export.ExportedProgram
    target : "llvm" (this machine's CPU unless `mcpu` names another) or "cuda" (needs `arch`, and no GPU here)
    arch : GPU architectures, "sm_90" or "sm_80,sm_90"
    sparse : "auto" decides for every convolution, "always" and "never" do what they say
    precision : what a float32 network stores activations and filters in, "float16" or "bfloat16" on a GPU; it sums in
        float32, float16 also in pairs, and its inputs and outputs stay float32
    batch, shapes : pin what the model leaves open: the leading dimension, whole input shapes by input name. A range,
        "1-32", or sizes, "1,8,32", make a library that serves every batch up to the largest: see docs/deployment.md
    threads : CPU threads that the work is cut for (default: those this process may use)
    log : records of tune() to choose kernels by: a folder or file, by default those that come with this package; None
        takes no records
    cuda_graph : CUDA: capture the kernels in a graph when the library is loaded, so that a call costs hardly any work
        of the host; without it every kernel is launched by itself
    overlap : CUDA, sm_90 and later: let each kernel begin before the one in front of it ends, where it waits
        (default: if `arch` begins with sm_90 and the batch is 1, where it was measured to pay)
    verify : compare with the original framework on a random input; not possible for a target this machine cannot run
    tolerance : largest relative error (L2, per output) that verification lets pass; with 16 bits it lets pass at least
        1.6e-2 (float16) or 0.125 (bfloat16)
    progress : called with the stage and its finished fraction

    Raises
    ------
    ModelError, InputError, CompileError
        See tvm_sparse.errors; the message names the file, the layer or the option.
    VerificationError
        When the compiled network and the original differ by more than `tolerance`.
    """
    tell = progress or (lambda stage, fraction: None)
    from tvm_sparse.deploy.buckets import buckets_of
    from tvm_sparse.targets import make_target

    buckets = buckets_of(batch)
    made = make_target(target, arch=arch, mcpu=mcpu, threads=threads)
    from tvm_sparse.network.batches import batch_sizes, lower_batches
    from tvm_sparse.network.build import BuiltNetwork, generate_code, lower_network
    from tvm_sparse.network.decide import check_mode
    from tvm_sparse.network.importer import import_model
    from tvm_sparse.network.precision import check_precision, stored_in
    from tvm_sparse.tvm_support import check_cuda_modules, cuda_build

    check_mode(sparse)
    check_precision(precision, target)
    known = _known_kernels(log, made)
    imported = []
    for index, bucket in enumerate(buckets or (None,)):
        tell("import the model", index / max(1, len(buckets)))
        imported.append(stored_in(import_model(model, batch=bucket, shapes=shapes), precision))
    tell("import the model", 1.0)
    sizes = batch_sizes(imported, buckets) if len(buckets) > 1 else None
    with ExitStack() as stack:
        archs = None
        if target == "cuda":
            build = stack.enter_context(cuda_build(arch or "", target=made))
            archs = build.archs
        if sizes is None:
            module, layers = lower_network(imported[0], made, sparse, tell, known)
        else:
            module, layers = lower_batches(imported, sizes, made, sparse, tell, known)
        built = BuiltNetwork(generate_code(module, made, tell, cuda_graph, overlap), layers)
        if target == "cuda":
            check_cuda_modules(built.executable, build)
    metadata = metadata_of(imported[-1], built, made, archs, sizes, cuda_graph, precision)
    network = CompiledNetwork(built, metadata)
    if verify and imported[0].reference is not None and _runs_here(target, mcpu):
        tell("verify", 0.0)
        network.verification = _compare(imported, network, sizes, tolerance, precision)
        tell("verify", 1.0)
        if not network.verification.passed:
            raise VerificationError(f"{imported[0].name}: {network.verification.describe()}")
    return network


def inspect(
    model: Model, *, batch: int | None = None, shapes: Mapping[str, Sequence[int]] | None = None
) -> list[LayerSummary]:
    """What the convolutions of a model are like: shapes, nonzeros, row lengths, whether they can run sparse."""
    from tvm_sparse.network.importer import import_model
    from tvm_sparse.network.inspection import inspect_model

    return inspect_model(import_model(model, batch=batch, shapes=shapes))


def tune(
    models: Model | Sequence[Model],
    *,
    log: str | Path,
    target: str = "llvm",
    arch: str | Sequence[str] | None = None,
    mcpu: str | None = None,
    precision: str = "float32",
    batch: Batch | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    threads: int | None = None,
    trials: int | None = None,
    trials_per_layer: int | None = None,
    time_budget_min: float | None = None,
    layers: Sequence[str] = (),
    rpc_tracker: str | None = None,
    rpc_key: str | None = None,
    builders: int | None = None,
    search: str = "guided",
    seed: int = 0,
    begin: Callable[[Sequence[Tally]], None] = lambda tallies: None,
    progress: Callable[[Tally], None] = lambda tally: None,
) -> list[TunedLayer]:
    """Find, by measuring, what runs each distinct layer of some networks best, and add every trial to a log.

    What the log already holds is not measured again, so a session that was cut off goes on where it was.

    Parameters
    ----------
    models : one model, see compile(), or several
    log : folder of the log; `compile(..., log=...)` takes it
    target, arch, mcpu, threads : as for compile(); the device must be here or in the fleet, and `arch` is its own
    batch, shapes : as for compile(); of several batch sizes the layers of each are tuned
    trials, trials_per_layer, time_budget_min : when to stop; 64 trials a layer where none is given
    layers : names or shell patterns of the layers to tune; none tunes all
    rpc_tracker, rpc_key : "HOST:PORT" of a TVM RPC tracker and the key of its servers, which then measure
    builders : processes that compile (default: the CPUs of this machine)
    search : "guided" by a cost model, or "random"
    begin, progress : called with all layers before the first trial, and with a layer after each of its trials

    Raises
    ------
    ModelError, InputError, CompileError, OutputError
        See tvm_sparse.errors.
    """
    from tvm_sparse.deploy.buckets import buckets_of
    from tvm_sparse.tuning.devices import setting_for
    from tvm_sparse.tuning.fleet import tracker_of
    from tvm_sparse.tuning.log_files import make_log
    from tvm_sparse.tuning.trials import Budget
    from tvm_sparse.tuning.tuner import tune as tune_layers

    tracker = tracker_of(rpc_tracker, rpc_key)
    buckets = buckets_of(batch)
    make_log(log)
    setting = setting_for(target, arch=arch, mcpu=mcpu, threads=threads, tracker=tracker)
    setting = replace(setting, builders=builders, strategy=search, seed=seed)
    from tvm_sparse.network.importer import import_model
    from tvm_sparse.network.precision import check_precision, stored_in
    from tvm_sparse.network.tunable import tunable_layers

    check_precision(precision, target)

    several = models if isinstance(models, Sequence) and not isinstance(models, str | bytes) else [models]
    imported = [
        stored_in(import_model(model, batch=bucket, shapes=shapes), precision)
        for model in several
        for bucket in buckets or (None,)
    ]
    if trials is None and trials_per_layer is None and time_budget_min is None:
        trials_per_layer = DEFAULT_TRIALS
    seconds = None if time_budget_min is None else 60 * time_budget_min
    budget = Budget(trials, trials_per_layer, seconds)
    wanted = tunable_layers(imported, setting.target, layers)
    return tune_layers(wanted, setting, budget, log, begin=begin, told=progress, warn=_warn)


def verify(model: Model, library: str | Path, *, tolerance: float = 1e-4, seed: int = 0) -> Verification:
    """Run a library and the model it was compiled from on the same random input.

    Raises
    ------
    ModelError, LibraryError
        When either cannot be loaded, or the library was compiled from a model with other inputs or outputs.
    """
    from tvm_sparse.deploy import load
    from tvm_sparse.deploy.batching import specs_for

    network = load(library)
    from tvm_sparse.network.importer import import_model

    sizes = network.metadata.batch
    imported = []
    for bucket in sizes.buckets if sizes else (None,):
        specs = specs_for(network.metadata, bucket)
        try:
            imported.append(import_model(model, shapes={spec.name: spec.shape for spec in specs}))
        except InputError as error:
            raise LibraryError(f"{library}: was compiled from another model: {error}") from error
    for kind in ("inputs", "outputs"):
        ours, theirs = (
            ", ".join(f"{spec.name} {spec.dtype} {spec.shape}" for spec in getattr(side, kind))
            for side in (network, imported[-1])
        )
        if ours != theirs:
            raise LibraryError(
                f"{library}: was compiled from another model: {kind} {ours}; {imported[-1].name} has {theirs}"
            )
    return _compare(imported, network, sizes, tolerance, network.metadata.precision, seed)


def _known_kernels(log: str | Path | None, target: Any) -> KnownKernels | None:
    if log is None:
        return None
    from tvm_sparse.tuning.log_files import read_log, shipped_logs
    from tvm_sparse.tuning.lookup import KnownKernels

    read = read_log(shipped_logs() if log == SHIPPED else log)
    for problem in read.problems:
        _warn(problem)
    return KnownKernels.for_target(read.records, target)


def _warn(problem: str) -> None:
    warnings.warn(problem, stacklevel=3)


def _runs_here(target: str, mcpu: str | None) -> bool:
    """Whether this machine can run what was compiled: CPU code for itself. A GPU is verified where it is."""
    return target == "llvm" and mcpu is None


def _compare(
    imported: Sequence[ImportedModel],
    network: Callable[..., Any],
    sizes: BatchSizes | None,
    tolerance: float,
    precision: str,
    seed: int = 0,
) -> Verification:
    if sizes is None:
        return compare(imported[0], network, tolerance=tolerance, precision=precision, seed=seed)
    return compare_batches(imported, network, sizes, tolerance=tolerance, precision=precision, seed=seed)
