"""Whole networks on a GPU: ours and dense torch in one process. See __main__.py for how to run it."""
