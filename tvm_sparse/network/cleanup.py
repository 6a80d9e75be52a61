"""The passes every imported module goes through."""

from __future__ import annotations

import tvm
from tvm import relax

from tvm_sparse.network.canonical import canonical_activations
from tvm_sparse.network.fold import fold_into_convolutions
from tvm_sparse.network.lift import lift_convolutions
from tvm_sparse.network.linear import lift_linear_layers


def clean_up(module: tvm.IRModule) -> tvm.IRModule:
    """Fold constants, batch norms, scales and padding; lift 1-D convolutions and pruned linear layers; canonical
    activations; no dead code.
    """
    fold = relax.transform.FoldConstant()
    tidy = tvm.transform.Sequential(
        [relax.transform.CanonicalizeBindings(), relax.transform.DeadCodeElimination(["main"])]
    )
    # dead code hides that a convolution has a single use, and the constants of dead batch norms are slow to fold
    module = fold_into_convolutions(tidy(lift_convolutions(fold(module))))
    module = relax.transform.DecomposeOpsForInference()(tidy(module))
    # behind the fold, which has transposed the weights of linear layers, and with each activation in one form
    return tidy(lift_linear_layers(tidy(canonical_activations(tidy(fold(module))))))
