"""What is measured: a pruned network at a batch, with seeded or published weights, in some precision of ours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tvm_sparse.errors import InputError

PRECISIONS = ("float32", "float16", "bfloat16")
SEEDED, LINEAR_TOO, PUBLISHED = "seeded", "seeded, linear layers too", "published"
#: Networks most of whose weights are those of linear layers.
LINEAR_NETWORKS = ("alexnet", "vgg16")


@dataclass(frozen=True)
class Case:
    """One measurement; `precision` is ours.

    `weights`: "seeded", the convolutions pruned but for the first, or the linear layers too; or "published" where real
    pruned filters exist.
    """

    network: str
    batch: int
    sparsity: float = 0.9
    weights: str = SEEDED
    precision: str = "float32"

    @property
    def name(self) -> str:
        """What options that choose cases match: "resnet50-32"."""
        return f"{self.network}-{self.batch}"

    @property
    def key(self) -> str:
        """Names the case in a record."""
        return f"{self.network} n{self.batch} {self.sparsity:g} {self.weights} {self.precision}"

    def model(self, seed: int, folder: Path | None = None) -> Any:
        """The network as an onnx.ModelProto; `folder` holds the published filters."""
        from examples.networks import build

        linear = self.sparsity if self.weights == LINEAR_TOO else 0.0
        model = build(self.network, batch=self.batch, sparsity=self.sparsity, seed=seed, linear_sparsity=linear)
        if self.weights == PUBLISHED:
            from benchmarks.gpu_networks.weights import put_published

            put_published(model, self.network, folder)
        return model


#: Networks and batches.
PRESETS: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "quick": (("resnet50", "googlenet", "alexnet", "mobilenetv1"), (1, 32)),
    "all": (("resnet50", "googlenet", "alexnet", "vgg16", "mobilenetv1"), (1, 32, 128)),
}


def select_cases(
    preset: str,
    *,
    networks_like: Sequence[str] = (),
    batches: Iterable[int] = (),
    sparsities: Iterable[float] = (),
    published: Sequence[str] = (),
    precisions: Iterable[str] = (),
) -> list[Case]:
    """The cases of a preset whose network matches one of `networks_like`, at other batches or sparsities if given.

    The networks `published` are measured with published weights too, at the sparsity that these have.

    Raises
    ------
    InputError
        Nothing is left.
    """
    networks, own_batches = PRESETS[preset]
    everything = PRESETS["all"][0]
    chosen = [name for name in everything if any(fnmatch(name, pattern) for pattern in networks_like or networks)]
    wanted = tuple(batches) or own_batches
    seeded = [
        (name, sparsity, weights)
        for name in chosen
        for sparsity in sparsities or (0.9,)
        for weights in ((SEEDED, LINEAR_TOO) if name in LINEAR_NETWORKS else (SEEDED,))
    ]
    real = [(name, 0.9, PUBLISHED) for name in chosen if name in published]
    cases = [
        Case(name, batch, sparsity, weights, precision)
        for name, sparsity, weights in (*seeded, *real)
        for batch in wanted
        for precision in tuple(precisions) or PRECISIONS[:1]
    ]
    if not cases:
        raise InputError(f"no network is called {', '.join(networks_like)}: there are {', '.join(everything)}")
    return cases


def chosen(case: Case, patterns: Sequence[str]) -> bool:
    """Whether one of the patterns matches the case's name."""
    return any(fnmatch(case.name, pattern) for pattern in patterns)
