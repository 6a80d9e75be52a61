"""One-shot magnitude pruning of ONNX models. Han et al., "Learning both weights and connections", NeurIPS 2015."""

from __future__ import annotations

from tvm_sparse.prune.file import prune_file
from tvm_sparse.prune.masks import magnitude_mask
from tvm_sparse.prune.model import prune_model
from tvm_sparse.prune.report import ConvPruning, PruneReport

__all__ = ["ConvPruning", "PruneReport", "magnitude_mask", "prune_file", "prune_model"]
