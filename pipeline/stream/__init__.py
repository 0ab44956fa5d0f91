"""Executes a plan: reads chunks through dask, yields whole batches. Torch begins here."""
