"""What a pruning did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ConvPruning:
    """One convolution of the model.

    Attributes
    ----------
    name : the node's name, or its output's where it has none
    weight : the name of its filter
    shape : of the filter, None where it is not stored in the model
    before, after : sparsity of the filter, None where it is not stored as floating point
    skipped : why the filter was left alone, None where it was pruned
    """

    name: str
    weight: str
    shape: tuple[int, ...] | None
    before: float | None
    after: float | None
    skipped: str | None = None


@dataclass(frozen=True)
class PruneReport:
    """Every convolution of a model, and the totals over the pruned filters (one that is shared counts once).

    Attributes
    ----------
    weights : number of weights in the pruned filters
    zeros_before, zeros_after : zeros among them
    """

    convs: tuple[ConvPruning, ...]
    weights: int
    zeros_before: int
    zeros_after: int

    @property
    def before(self) -> float:
        """Sparsity of all pruned filters together, before."""
        return self.zeros_before / self.weights if self.weights else 0.0

    @property
    def after(self) -> float:
        """Sparsity of all pruned filters together, after."""
        return self.zeros_after / self.weights if self.weights else 0.0

    @property
    def pruned(self) -> tuple[ConvPruning, ...]:
        return tuple(conv for conv in self.convs if conv.skipped is None)

    @property
    def skipped(self) -> tuple[ConvPruning, ...]:
        return tuple(conv for conv in self.convs if conv.skipped is not None)
