"""Measured schedule records, one folder per device; data only, read through :mod:`importlib.resources`."""
