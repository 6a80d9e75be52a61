"""From a model file to a Relax module whose prunable convolutions are computed on their nonzeros."""
