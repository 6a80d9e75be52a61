"""One library on several devices: a network for each, host threads of its own, work dealt out to whichever is free."""

from __future__ import annotations

import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tvm_sparse.cuda.archs import runs_on
from tvm_sparse.cuda.paths import device_capabilities
from tvm_sparse.deploy import tensors
from tvm_sparse.deploy.batching import specs_for, split
from tvm_sparse.deploy.loading import load
from tvm_sparse.deploy.machine import default_threads, usable_cpus
from tvm_sparse.deploy.metadata import Metadata, TensorSpec
from tvm_sparse.deploy.runtime import Network
from tvm_sparse.deploy.trailer import read_metadata
from tvm_sparse.errors import InputError

Result = TypeVar("Result")
#: While one computes, the other copies its inputs to the GPU or its outputs back.
THREADS_PER_GPU = 2
#: Requests handed out for each thread: one that runs and one that waits, so that a thread never does.
REQUESTS_PER_THREAD = 2
#: Networks are loaded one after the other: while a CUDA graph is captured, other threads must not allocate.
_starting = threading.Lock()
_Tasks = queue.SimpleQueue["tuple[Future[Any], Callable[[Network], Any]] | None"]


def serve(path: str | Path, *, devices: Sequence[str] | None = None, threads: int | None = None) -> DataParallel:
    """Load a library on several devices: a `DataParallel`, which takes the same parameters; use it with `with`."""
    return DataParallel(path, devices=devices, threads=threads)


class DataParallel:
    """A library on several devices. Calls from several threads share them.

    Parameters
    ----------
    path
        A file that `export` wrote; loading runs its code, so load only what you trust.
    devices
        Like "cuda:0", each once; by default all visible GPUs that the library runs on. Of a CPU library "cpu", as
        often as instances are wanted (default: one), between which the threads are split.
    threads
        CPU threads of all instances together; by default the usable cores.

    Raises
    ------
    LibraryError
        The library cannot be loaded on one of the devices; see `load`.
    InputError
        `devices` or `threads` are not possible.

    Attributes
    ----------
    devices : the devices, in order
    metadata : what the library says about itself
    """

    def __init__(self, path: str | Path, *, devices: Sequence[str] | None = None, threads: int | None = None) -> None:
        self.metadata = read_metadata(path)
        self.devices = _chosen(devices, self.metadata)
        shares = _shares(threads, len(self.devices)) if self.metadata.target != "cuda" else [None] * len(self.devices)
        self._tasks: _Tasks = queue.SimpleQueue()
        self._each = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._networks: list[Network] = []
        self._end = weakref.finalize(self, _end, self._tasks, self._threads)
        try:
            for device, share in zip(self.devices, shares, strict=True):
                network = self._start(partial(load, path, device=device, threads=share), device)
                self._networks.append(network)
                for _ in range(1, THREADS_PER_GPU if network.device != "cpu" else 1):
                    self._start(partial(_same, network), device)
        except BaseException:
            self.close()
            raise

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Name, shape and dtype of every input of a network, in order."""
        return self.metadata.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Name, shape and dtype of every output of a network, in order."""
        return self.metadata.outputs

    def random_inputs(self, seed: int = 0, batch: int | None = None) -> dict[str, NDArray[Any]]:
        """As `Network.random_inputs`."""
        return tensors.random_inputs(specs_for(self.metadata, batch), seed)

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Run a batch of any size, split over the devices.

        Parameters
        ----------
        *inputs, **named
            numpy arrays, by position or by name. Of a library for a single batch size their batch is a multiple of it.

        Returns
        -------
        array or tuple of arrays
            One numpy array per output.

        Raises
        ------
        InputError
            An input is missing or has the wrong name, shape or dtype.
        """
        values = tensors.in_order(self.inputs, inputs, named)
        parts = list(self.map(split(values, self.metadata, len(self.devices))))
        if len(parts) == 1:
            return parts[0]
        if len(self.outputs) == 1:
            return np.concatenate(parts)
        return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))

    def map(self, requests: Iterable[Any]) -> Iterator[Any]:
        """Run a stream of requests on whichever device is free; what they return, in the order of the requests.

        A few requests are taken ahead of the results.

        Parameters
        ----------
        requests
            Each what a network takes: an array, a sequence of arrays, or a mapping by input name.

        Raises
        ------
        InputError
            At the place of a request that does not fit.
        """
        pending: deque[Future[Any]] = deque()
        try:
            for request in requests:
                pending.append(self._submit(_caller(request)))
                if len(pending) >= REQUESTS_PER_THREAD * len(self._threads):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def on_each(self, function: Callable[[Network], Result]) -> list[Result]:
        """Call a function with every network, in a thread of the network, at the same time; in the devices' order."""
        together = threading.Barrier(len(self._threads))  # so that no thread takes two
        waiting = list(self._networks)
        choosing = threading.Lock()

        def call(network: Network) -> tuple[Network, Result] | None:
            together.wait()
            with choosing:
                if network not in waiting:
                    return None  # another thread of this network has it
                waiting.remove(network)
            return network, function(network)

        with self._each:
            done = [future.result() for future in [self._submit(call) for _ in self._threads]]
        results = dict(filter(None, done))
        return [results[network] for network in self._networks]

    def close(self) -> None:
        """Wait for the work that was handed in, then let go of the networks."""
        self._end()
        for thread in self._threads:
            thread.join()
        self._networks = []

    def __enter__(self) -> DataParallel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, give: Callable[[], Network], device: str) -> Network:
        """A thread that works on a network, once it does."""
        started: Future[Network] = Future()
        arguments = (self._tasks, give, started)
        thread = threading.Thread(target=_work, args=arguments, name=f"tvm-sparse {device}", daemon=True)
        thread.start()
        network = started.result()
        self._threads.append(thread)
        return network

    def _submit(self, function: Callable[[Network], Result]) -> Future[Result]:
        if not self._end.alive:
            raise InputError("these networks were closed")
        future: Future[Result] = Future()
        self._tasks.put((future, function))
        return future


def _work(tasks: _Tasks, give: Callable[[], Network], started: Future[Network]) -> None:
    """A thread of a network: get it, then take one task after the other."""
    with ExitStack() as stack:
        try:
            with _starting:
                network = give()
                stack.enter_context(network.own_stream())
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(network)
        del give, started  # they would keep the network
        while (task := tasks.get()) is not None:
            future, function = task
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(network))
                except BaseException as error:
                    future.set_exception(error)
            del task, future, function  # their arrays would live until the next task


def _same(network: Network) -> Network:
    return network


def _end(tasks: _Tasks, threads: Sequence[threading.Thread]) -> None:
    for _ in threads:
        tasks.put(None)


def _chosen(devices: Sequence[str] | None, metadata: Metadata) -> tuple[str, ...]:
    if devices is not None:
        names = (devices,) if isinstance(devices, str) else tuple(devices)
        if not names:
            raise InputError("no device to run on: name at least one")
        named = [f"{name}:0" if name == "cuda" else name for name in names]
        twice = [name for name in named if name != "cpu" and named.count(name) > 1]
        if twice:
            raise InputError(f"device {twice[0]} is named twice")
        return tuple(named)
    if metadata.target != "cuda":
        return ("cpu",)
    visible = enumerate(device_capabilities() or ())
    fitting = [index for index, version in visible if any(runs_on(arch, version) for arch in metadata.archs)]
    return tuple(f"cuda:{index}" for index in fitting or (0,))  # where there is none, loading says what is missing


def _shares(threads: int | None, instances: int) -> list[int | None]:
    """CPU threads for each instance."""
    cpus = len(usable_cpus())
    if threads is not None and not instances <= threads <= cpus:
        raise InputError(f"{threads} threads for {instances} instances: give {instances} to {cpus}")
    total = threads or default_threads()
    return [max(1, total // instances + (index < total % instances)) for index in range(instances)]


def _caller(request: Any) -> Callable[[Network], Any]:
    if isinstance(request, Mapping):
        return lambda network: network(**request)
    if isinstance(request, list | tuple):
        return lambda network: network(*request)
    return lambda network: network(request)
