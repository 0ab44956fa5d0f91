"""Legacy NPZ files to canonical Zarr stores and back."""
