"""Convolution layers on a GPU: ours, cuDNN, cuSPARSE and cuBLAS in one process. See __main__.py for how to run it."""
