"""What compile() gives back: a network in memory, to be run, looked at and exported."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvm_sparse.deploy import BatchSizes, ExportReport, Metadata, Network
    from tvm_sparse.network.build import BuiltNetwork
    from tvm_sparse.network.imported import ImportedModel
    from tvm_sparse.network.replace import LayerDecision
    from tvm_sparse.verification import Verification


class CompiledNetwork:
    """A compiled network: run it, look at its decisions, export it.

    Attributes
    ----------
    metadata : what the library says of itself: inputs, outputs, target, versions, decisions
    verification : the comparison with the reference, or None where none was made
    """

    def __init__(self, built: BuiltNetwork, metadata: Metadata) -> None:
        self._built = built
        self._running: tuple[Network, tempfile.TemporaryDirectory[str]] | None = None
        self.metadata = metadata
        self.verification: Verification | None = None

    @property
    def dense_bytes(self) -> int:
        """Bytes of all convolution filters with their zeros."""
        return self.metadata.dense_bytes

    @property
    def sparse_bytes(self) -> int:
        """Bytes of the convolution filters as they were packed, of several batch sizes for the largest."""
        return self.metadata.sparse_bytes

    def report(self, batch: int | None = None) -> list[LayerDecision]:
        """How every convolution runs, and why; for each batch size compiled for, or only that which serves `batch`.

        Raises
        ------
        InputError
            The network does not serve this `batch`.
        """
        from tvm_sparse.deploy.batching import bucket_for

        bucket = bucket_for(self.metadata, batch)
        return [layer for layer in self._built.layers if bucket is None or layer.batch == bucket]

    def export(self, path: str | Path) -> ExportReport:
        """Write the one-file library; an old file at `path` stays as it is if anything fails.

        Raises
        ------
        OutputError
            When `path` cannot be written.
        CompileError
            When there is no C++ compiler to link with.
        """
        from tvm_sparse.deploy import export_library

        return export_library(self._built.executable, self.metadata, path)

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Run the network here, through an exported library as a user of it would; see deploy.Network."""
        if self._running is None:
            from tvm_sparse.deploy import load

            folder = tempfile.TemporaryDirectory(prefix="tvm-sparse-")
            library = Path(folder.name) / "net.so"
            self.export(library)
            self._running = (load(library), folder)
        return self._running[0](*inputs, **named)


def metadata_of(
    imported: ImportedModel,
    built: BuiltNetwork,
    target: Any,
    archs: Sequence[str] | None,
    sizes: BatchSizes | None,
    cuda_graph: bool,
    precision: str,
) -> Metadata:
    """Metadata of what was built from a model, imported with the largest batch."""
    from tvm_sparse.deploy import make_metadata

    layers = [layer for layer in built.layers if sizes is None or layer.batch == sizes.largest]
    return make_metadata(
        model=imported.name,
        inputs=imported.inputs,
        outputs=imported.outputs,
        target=target,
        archs=archs,
        precision=precision,
        batch=sizes,
        cuda_graph=cuda_graph and archs is not None,
        layers=[asdict(layer) for layer in built.layers],
        dense_bytes=sum(layer.dense_bytes for layer in layers),
        sparse_bytes=sum(layer.packed_bytes for layer in layers),
    )
