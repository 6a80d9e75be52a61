"""Operators that stay dense, one by one: our kernel for each beside torch's, on one GPU in one process."""
