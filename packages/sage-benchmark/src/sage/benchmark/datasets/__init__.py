"""Data that others published, read where it lies and never copied; and generators of our own beside it."""

from __future__ import annotations

from sage.benchmark.datasets.port import DATA_DIR, Dataset, TraceRequest, available_datasets, open_dataset

__all__ = ["DATA_DIR", "Dataset", "TraceRequest", "available_datasets", "open_dataset"]
