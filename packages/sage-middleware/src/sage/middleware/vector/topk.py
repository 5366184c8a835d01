"""Exact top-k by the native kernel, or by NumPy where `SAGE_NATIVE=0` asks for it."""

from __future__ import annotations

import os
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from sage.middleware.native import wants_native
from sage.middleware.vector.port import FloatMatrix

__all__ = ["Metric", "TopK", "numpy_top_k", "select_top_k", "top_k"]

Metric = Literal["inner_product", "cosine"]


class TopK(Protocol):
    """A top-k implementation: (queries, min(k, vectors)) indices and scores, best first."""

    def __call__(
        self, vectors: FloatMatrix, queries: FloatMatrix, k: int, *, metric: Metric
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Search."""
        ...


def top_k(
    vectors: FloatMatrix, queries: FloatMatrix, k: int, *, metric: Metric
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """For each query the indices and scores of its best `min(k, len(vectors))` vectors, best first.

    Both are C-contiguous float32 of shape (rows, columns). Equal scores are in order of their index; a score
    that is NaN ranks behind every number; the cosine with a zero vector is 0. Raises TypeError, ValueError.

    >>> found, scores = top_k(np.eye(3, dtype="f4"), np.eye(3, dtype="f4")[1:2], 2, metric="inner_product")
    >>> found.tolist(), scores.tolist()
    ([[1, 0]], [[1.0, 0.0]])
    """
    return select_top_k(os.environ.get("SAGE_NATIVE", ""))(vectors, queries, k, metric=metric)


def select_top_k(setting: str) -> TopK:
    """The implementation for a value of `SAGE_NATIVE`: "0" is NumPy, "" or "1" the native one.

    Raises ConfigError when the native module is missing; see `wants_native`.
    """
    if not wants_native(setting):
        return numpy_top_k
    from sage.middleware import _native

    return _native.top_k


def numpy_top_k(
    vectors: FloatMatrix, queries: FloatMatrix, k: int, *, metric: Metric
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The same by NumPy: the oracle of the native kernel's tests."""
    for name, array in (("vectors", vectors), ("queries", queries)):
        if array.dtype != np.float32 or array.ndim != 2:
            found = f"{array.dtype} of {array.ndim} dimensions"
            raise TypeError(f"{name} has to be a float32 array of 2 dimensions; found {found}.")
    if vectors.shape[1] != queries.shape[1]:
        raise ValueError(
            f"vectors have {vectors.shape[1]} columns and queries {queries.shape[1]}; they have to agree."
        )
    if k < 1:
        raise ValueError(f"k has to be at least 1; found {k}.")
    scores = queries @ vectors.T
    if metric == "cosine":
        lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(vectors, axis=1)[None, :]
        scores = np.where(lengths == 0, np.float32(0), scores / np.where(lengths == 0, 1, lengths))
    # A stable sort of the negated scores gives lower indices first; NumPy sorts NaN to the end.
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order.astype(np.int64), np.take_along_axis(scores, order, axis=1).astype(np.float32)
