"""A loaded library and its calls, with TVM's runtime only: neither the compiler nor TVM's package is imported."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tvm_sparse.deploy import tensors
from tvm_sparse.deploy.batching import Batching, bucket_for, outputs_for, specs_for
from tvm_sparse.deploy.bound import BoundCall, check_bindable
from tvm_sparse.deploy.cuda_calls import CudaCalls
from tvm_sparse.deploy.host_calls import HostCalls
from tvm_sparse.deploy.metadata import Metadata, TensorSpec
from tvm_sparse.deploy.native import start_machine
from tvm_sparse.deploy.threads import ThreadPool
from tvm_sparse.deploy.torch_calls import TorchCalls, first_on_gpu, from_cpu
from tvm_sparse.errors import InputError, LibraryError


class Network:
    """A loaded library, which `load` makes: call it like a function. Calls from several threads run one by one.

    Attributes
    ----------
    path : the library file
    metadata : what it says about itself
    device : "cpu" or "cuda:0"
    """

    def __init__(
        self,
        path: Path,
        metadata: Metadata,
        tvm_ffi: Any,
        machine: Any,
        device: tuple[str, int],
        pool: ThreadPool | None,
        gpu: CudaCalls | None,
    ) -> None:
        self.path = path
        self.metadata = metadata
        self.device = device[0] if device[0] == "cpu" else f"{device[0]}:{device[1]}"
        self._tvm_ffi = tvm_ffi
        self._machine = machine  # owns the memory pools of its functions
        sizes = metadata.batch
        self._batching = Batching(tvm_ffi, metadata, sizes, device) if sizes else None
        # By bucket; a library of one batch size has the bucket None.
        self._names: dict[int | None, str] = {None: "main"}
        if sizes:
            self._names = {bucket: sizes.function(bucket) for bucket in sizes.buckets}
        self._functions = {bucket: machine[name] for bucket, name in self._names.items()}
        self._outputs = {bucket: outputs_for(metadata, bucket) for bucket in self._names}
        self._place = device
        self._pool = pool
        self._gpu = gpu
        self._torch: TorchCalls | None = None  # made by the first call that needs it
        self._host = HostCalls(tvm_ffi, metadata, device, self._batching) if self._gpu else None
        self._lock = threading.Lock()
        if self._gpu:
            weakref.finalize(self, self._gpu.finish).atexit = False  # its memory goes back to a pool

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Name, shape and dtype of every input, in order; with the largest batch where it serves several."""
        return self.metadata.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Name, shape and dtype of every output, in order; with the largest batch where it serves several."""
        return self.metadata.outputs

    @property
    def index(self) -> int:
        """Of the GPU; 0 on a CPU."""
        return self._place[1]

    @property
    def threads(self) -> int | None:
        """CPU threads of a call; None on a GPU."""
        return self._pool.threads if self._pool else None

    def report(self, batch: int | None = None) -> tuple[dict[str, Any], ...]:
        """How every convolution runs and why, as the compiler wrote it down.

        Of a library that serves several batches: at each size compiled for, or only at that which serves `batch`.

        Raises
        ------
        InputError
            It does not serve this `batch`.
        """
        bucket = bucket_for(self.metadata, batch)
        return tuple(layer for layer in self.metadata.layers if bucket is None or layer.get("batch") == bucket)

    def random_inputs(self, seed: int = 0, batch: int | None = None) -> dict[str, NDArray[Any]]:
        """Seeded inputs by name that fit this network; of a library that serves several batches with the largest one.

        Raises
        ------
        InputError
            It does not serve this `batch`.
        """
        return tensors.random_inputs(specs_for(self.metadata, batch), seed)

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Run the network once.

        Parameters
        ----------
        *inputs, **named
            numpy arrays or tensors with a DLPack interface, by position or by name.

        Returns
        -------
        array or tuple of arrays
            One per output: numpy arrays if all inputs are, torch tensors if one is, else DLPack tensors on the
            network's device.

        Raises
        ------
        InputError
            An input is missing or has the wrong name, shape, dtype or device.
        """
        values = tensors.in_order(self.inputs, inputs, named)
        fit = self._torch is not None and self._torch.fit(values)
        framework = "torch" if fit else tensors.framework(values)
        if self._host and framework == "numpy":
            converted: Sequence[Any] = self._host(values, self.invoke, self.synchronize)
        elif fit or (framework == "torch" and self._gpu and first_on_gpu(values)):
            converted = self._call_in_torch(values, fit)
        else:
            converted = [self._convert(result, values, framework) for result in self._run(values)]
        return converted[0] if len(converted) == 1 else tuple(converted)

    def bind(self, *inputs: Any, **named: Any) -> BoundCall:
        """Fix the tensors of a call on a GPU: all its kernels become one CUDA graph.

        Parameters
        ----------
        *inputs, **named
            Tensors with a DLPack interface that a call reads where they lie: on the network's GPU, contiguous from a
            multiple of 64 bytes on, of a batch compiled for.

        Returns
        -------
        BoundCall
            Call it without arguments. Its outputs are torch tensors if an input is one, else DLPack tensors.

        Raises
        ------
        InputError
            As for a call; or an input would be copied, the network runs on the CPU, or the stream is captured.
        LibraryError
            It was compiled without a CUDA graph, or CUDA refuses to capture it.
        """
        if self._gpu is None:
            raise InputError(f"{self.path} runs on the CPU, where calls have no launches to save: call it as it is")
        if not self.metadata.cuda_graph:
            raise LibraryError(f"{self.path} was compiled with --no-cuda-graph and cannot be bound: compile it without")
        values = tensors.in_order(self.inputs, inputs, named)
        given = self.to_device(values)
        check_bindable(self._tvm_ffi, self, values, given)
        bucket = self._bucket(given)
        calls = self._torch_calls() if tensors.framework(values) == "torch" else None
        outputs = calls.new(self._outputs[bucket]) if calls else self.new_outputs(given)
        written = calls.shared(outputs) if calls else outputs
        stream = calls.stream if calls else contextlib.nullcontext
        with self._capturing("call it as it is"), stream():
            graph = self._gpu.graph(self._functions[bucket], given, written)
        return BoundCall(self, self._gpu, graph, values, outputs, stream, (given, written))

    def run(self, inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Run the network once, inputs and outputs by name; the outputs are numpy arrays.

        Raises
        ------
        InputError
            As for a call.
        """
        values = tensors.in_order(self.inputs, (), inputs)
        if self._host and tensors.framework(values) == "numpy":
            arrays = self._host(values, self.invoke, self.synchronize)
        else:
            arrays = tuple(map(self._to_numpy, self._run(values)))
        return {spec.name: array for spec, array in zip(self.outputs, arrays, strict=True)}

    def to_device(self, values: Sequence[Any]) -> list[Any]:
        """Tensors for `invoke`, one per input in order; memory is shared where the array allows it.

        A batch between two sizes that the library was compiled for is padded to the larger one.

        Raises
        ------
        InputError
            As for a call.
        """
        if self._batching:
            return self._batching.to_device(values)
        return [
            tensors.to_tensor(self._tvm_ffi, spec, value, *self._place)
            for spec, value in zip(self.inputs, values, strict=True)
        ]

    def invoke(self, inputs: Sequence[Any], outputs: Sequence[Any] | None = None) -> tuple[Any, ...]:
        """Run on tensors that `to_device` made. On a GPU this returns before the work is done; see `synchronize`.

        A GPU's results are written into `outputs`, or into tensors made for it, which takes time; see `new_outputs`.
        """
        function = self._functions[self._bucket(inputs)]
        if self._gpu:
            results = tuple(self.new_outputs(inputs) if outputs is None else outputs)
            self._gpu(function, inputs, results)
            return results
        with self._lock:
            if self._pool:
                self._pool.use()
            result = function(*inputs)
        return (result,) if isinstance(result, self._tvm_ffi.Tensor) else tuple(result)

    def new_outputs(self, inputs: Sequence[Any]) -> list[Any]:
        """Tensors on the device for what a GPU's `invoke` makes of these inputs; a CPU makes its own."""
        specs = self._outputs[self._bucket(inputs)]
        return [tensors.allocate(self._tvm_ffi, spec, *self._place) for spec in specs]

    def prepare(self) -> None:
        """Let a GPU's work be captured; `load` does.

        Raises
        ------
        LibraryError
            It cannot be captured here.
        """
        if self._gpu is None:
            return
        for bucket, function in self._functions.items():
            with self._capturing("compile it with --no-cuda-graph"):
                self._gpu.capture(function, specs_for(self.metadata, bucket), self._outputs[bucket])

    def run_instrumented(self, inputs: Sequence[Any], instrument: Callable[..., int], runs: int = 1) -> None:
        """Run in a machine that was not prepared, as TVM calls `instrument` before and after each function.

        It gets the function, its name, whether this is before the call, the result and the arguments, and returns 0.
        """
        machine = start_machine(self._tvm_ffi, self.path, *self._place)
        machine["set_instrument"](instrument)
        function = machine[self._names[self._bucket(inputs)]]
        for _ in range(runs):
            if self._gpu:
                self._gpu(function, inputs, self.new_outputs(inputs))
                self.synchronize()
                continue
            with self._lock:
                if self._pool:
                    self._pool.use()
                function(*inputs)

    def capturing(self) -> bool:
        """Whether a GPU's work is being captured at this moment."""
        return self._gpu is not None and self._gpu.capturing()

    def own_stream(self) -> contextlib.AbstractContextManager[None]:
        """A CUDA stream for the calls of this thread, which wait for those of others only where they must."""
        return self._gpu.own_stream() if self._gpu else contextlib.nullcontext()

    def synchronize(self) -> None:
        """Wait until the GPU has done what was asked of it; nothing to wait for on a CPU."""
        if self._gpu:
            self._gpu.synchronize()

    def _bucket(self, inputs: Sequence[Any]) -> int | None:
        return self._batching.bucket_of(inputs) if self._batching else None

    def _run(self, values: Sequence[Any]) -> tuple[Any, ...]:
        results = self.invoke(self.to_device(values))
        return self._batching.cut(results, values) if self._batching else results

    def _call_in_torch(self, values: Sequence[Any], fit: bool) -> list[Any]:
        """On torch's stream and into its memory; `fit` says that the inputs need no look."""
        calls = self._torch_calls()
        with calls.stream():
            inputs = calls.shared(values) if fit else self.to_device(values)
            made = calls.new(self._outputs[self._bucket(inputs)])
            self.invoke(inputs, calls.shared(made))
        return [tensor[: self._batching.batch_of(values)] for tensor in made] if self._batching else made

    def _torch_calls(self) -> TorchCalls:
        if self._torch is None:
            self._torch = TorchCalls(self._tvm_ffi, self._place[1], () if self._batching else self.inputs)
        return self._torch

    @contextlib.contextmanager
    def _capturing(self, hint: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise LibraryError(f"{self.path}: its kernels cannot be captured: {reason}: {hint}") from error

    def _to_numpy(self, result: Any) -> NDArray[Any]:
        self.synchronize()
        return tensors.to_numpy(self._tvm_ffi, result)

    def _convert(self, result: Any, values: Sequence[Any], framework: str) -> Any:
        if framework == "numpy":
            return self._to_numpy(result)
        if framework == "dlpack":
            return result
        if self._gpu:
            import torch

            return torch.from_numpy(self._to_numpy(result))
        return from_cpu(result, values)
