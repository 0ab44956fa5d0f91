"""What a scan is and how it is stored. No torch here; zarr and xarray only in `store` and `codec`."""
