"""Load a library and run it, with TVM's runtime only: neither the compiler nor TVM's Python package is imported."""

from __future__ import annotations

import contextlib
import platform
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tvm_sparse.cuda.archs import runs_on
from tvm_sparse.cuda.paths import device_capabilities
from tvm_sparse.deploy import tensors
from tvm_sparse.deploy.batching import Batching, bucket_for, specs_for
from tvm_sparse.deploy.machine import cpu_features
from tvm_sparse.deploy.metadata import Metadata, TensorSpec
from tvm_sparse.deploy.native import load_module, load_runtime
from tvm_sparse.deploy.threads import ThreadPool
from tvm_sparse.deploy.trailer import read_metadata
from tvm_sparse.errors import InputError, LibraryError

_POOLED_ALLOCATOR = 2
_CPU = 1


def load(path: str | Path, *, device: str | None = None, threads: int | None = None) -> Network:
    """Load a library; loading runs its code, so load only what you trust.

    Parameters
    ----------
    path
        A file that `export` wrote.
    device
        "cpu", "cuda" or "cuda:1"; by default the first device of the kind the library is for.
    threads
        CPU threads to use; by default the usable cores, or TVM_NUM_THREADS.

    Raises
    ------
    LibraryError
        The file is missing or damaged, or this machine lacks what it needs: CPU features, a GPU of its arch, a driver.
    InputError
        `device` or `threads` is not possible.
    """
    path = Path(path).absolute()
    metadata = read_metadata(path)
    kind, index = _parse_device(device, metadata)
    _check_cpu(path, metadata)
    if kind == "cuda":
        _check_gpu(path, metadata, index)
    tvm_ffi = load_runtime(path, cuda=kind == "cuda")
    pool = ThreadPool(tvm_ffi, threads) if kind == "cpu" else None
    machine = load_module(tvm_ffi, path)["vm_load_executable"]()
    where = [tensors.DEVICE_TYPES[kind], index, _POOLED_ALLOCATOR]
    machine["vm_initialization"](*where, *([_CPU, 0, _POOLED_ALLOCATOR] if kind == "cuda" else []))
    return Network(path, metadata, tvm_ffi, machine, (kind, index), pool)


class Network:
    """A loaded library: call it like a function. Calls from several threads run one after the other.

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
    ) -> None:
        self.path = path
        self.metadata = metadata
        self.device = device[0] if device[0] == "cpu" else f"{device[0]}:{device[1]}"
        self._tvm_ffi = tvm_ffi
        self._machine = machine  # owns the memory pools of its functions
        self._main = machine["main"]
        sizes = metadata.batch
        self._batching = Batching(tvm_ffi, metadata, sizes, device) if sizes else None
        self._by_bucket = {bucket: machine[sizes.function(bucket)] for bucket in sizes.buckets} if sizes else {}
        self._place = device
        self._pool = pool
        self._lock = threading.Lock()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Name, shape and dtype of every input, in order; with the largest batch where it serves several."""
        return self.metadata.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Name, shape and dtype of every output, in order; with the largest batch where it serves several."""
        return self.metadata.outputs

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
        framework = tensors.framework(values)
        with self._torch_stream(framework):
            results = self._run(values)
            converted = tuple(self._convert(result, values, framework) for result in results)
        return converted[0] if len(converted) == 1 else converted

    def run(self, inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Run the network once, inputs and outputs by name; the outputs are numpy arrays.

        Raises
        ------
        InputError
            As for a call.
        """
        results = self._run(tensors.in_order(self.inputs, (), inputs))
        arrays = (tensors.to_numpy(self._tvm_ffi, result) for result in results)
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

    def invoke(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """Run on tensors that `to_device` made. On a GPU this returns before the work is done; see `synchronize`."""
        with self._lock:
            if self._pool:
                self._pool.use()
            main = self._by_bucket[self._batching.bucket_of(inputs)] if self._batching else self._main
            result = main(*inputs)
        return (result,) if isinstance(result, self._tvm_ffi.Tensor) else tuple(result)

    def synchronize(self) -> None:
        """Wait until the GPU has done what was asked of it; nothing to wait for on a CPU."""
        if self._place[0] != "cpu":
            device = self._tvm_ffi.device(*self._place)
            self._tvm_ffi.get_global_func("runtime.Device_StreamSync")(device, 0)

    def _run(self, values: Sequence[Any]) -> tuple[Any, ...]:
        results = self.invoke(self.to_device(values))
        return self._batching.cut(results, values) if self._batching else results

    def _torch_stream(self, framework: str) -> Any:
        """Let TVM use the CUDA stream that torch's caller has chosen."""
        on_gpu = self._place[0] != "cpu" and framework == "torch"
        return self._tvm_ffi.use_torch_stream() if on_gpu else contextlib.nullcontext()

    def _convert(self, result: Any, values: Sequence[Any], framework: str) -> Any:
        if framework == "numpy":
            return tensors.to_numpy(self._tvm_ffi, result)
        if framework == "dlpack":
            return result
        import torch

        inputs = [value for value in values if isinstance(value, torch.Tensor)]
        if self._place[0] != "cpu" and not inputs[0].is_cuda:
            return torch.from_numpy(tensors.to_numpy(self._tvm_ffi, result))
        tensor = torch.from_dlpack(result)
        # A network may hand on an input as it came; its caller would then write into both.
        return tensor.clone() if any(value.data_ptr() == tensor.data_ptr() for value in inputs) else tensor


def _parse_device(device: str | None, metadata: Metadata) -> tuple[str, int]:
    kind = "cuda" if metadata.target == "cuda" else "cpu"
    match = re.fullmatch(r"(cpu|cuda)(?::(\d+))?", kind if device is None else device)
    if match is None:
        raise InputError(f"device must be cpu, cuda or cuda:N, not {device!r}")
    if match[1] != kind:
        raise InputError(f"device {device!r} does not fit: the library was compiled for {kind}")
    return kind, int(match[2] or 0) if kind == "cuda" else 0


def _check_cpu(path: Path, metadata: Metadata) -> None:
    family = metadata.triple.split("-")[0]
    here = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    if family and family != here:
        raise LibraryError(f"{path}: was compiled for {family} CPUs, this one is {here}: compile it for this machine")
    features = cpu_features()
    missing = [] if features is None else [name for name in metadata.cpu_features if name not in features]
    if missing:
        made_for = metadata.mcpu or "another CPU"
        raise LibraryError(
            f"{path}: was compiled for {made_for}, this CPU lacks {', '.join(missing)}: compile it for this machine"
        )


def _check_gpu(path: Path, metadata: Metadata, index: int) -> None:
    archs = ", ".join(metadata.archs)
    capabilities = device_capabilities()
    if capabilities is None:
        raise LibraryError(f"{path}: runs on NVIDIA GPUs ({archs}) and no working driver is here: install the driver")
    if not capabilities:
        raise LibraryError(f"{path}: runs on NVIDIA GPUs ({archs}) and the driver shows none")
    if index >= len(capabilities):
        raise InputError(f"device cuda:{index} does not exist, there are {len(capabilities)} GPUs")
    capability = capabilities[index]
    if not any(runs_on(arch, capability) for arch in metadata.archs):
        wanted = "sm_{}{}".format(*capability)
        raise LibraryError(f"{path}: holds code for {archs}, GPU {index} is {wanted}: compile it with --arch {wanted}")
