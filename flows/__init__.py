"""Prefect flows, dask clusters and the command line; the work itself is in unet_core."""
