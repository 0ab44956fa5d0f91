"""Ptychography scans from legacy NPZ files to proven models. Importing this loads nothing heavy."""

__version__ = "0.1.0"
