"""Exact block-wise segmentation of very large images with U-Nets. Knows neither Prefect nor dask.distributed."""

__version__ = "0.1.0"
