"""Tuning: a layer's best template and knobs, found by measuring and kept in a log."""
