"""Scans made from formulas and a seed: textures, probes, positions, the far field with its photon noise."""
