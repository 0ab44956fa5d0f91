"""Measurements against the alternatives, side by side in one run. Imported by a test so that they cannot rot."""
