"""An exact index: every vector is compared, by the native top-k."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from sage.common.errors import UsageError
from sage.middleware.vector import snapshot
from sage.middleware.vector.port import FloatMatrix, FloatVector, Hit, Payload
from sage.middleware.vector.topk import top_k

__all__ = ["FlatIndex"]

_FIRST_CAPACITY = 64


class FlatIndex:
    """Vectors as unit-length float32 in one growing array; implements `VectorIndex`.

    A zero vector stays zero and has cosine 0 with everything. One thread at a time.

    >>> index = FlatIndex(2)
    >>> index.add(["a", "b"], np.array([[1, 0], [0, 2]], dtype=np.float32), [{"n": 1}, {"n": 2}])
    >>> [(hit.id, hit.score, hit.payload) for hit in index.search(np.array([0, 1], dtype=np.float32), 1)]
    [('b', 1.0, {'n': 2})]
    """

    def __init__(self, dimensions: int) -> None:
        if dimensions < 1:
            raise UsageError(f"An index has {dimensions} dimensions; it needs at least 1.")
        self._vectors = np.zeros((_FIRST_CAPACITY, dimensions), dtype=np.float32)
        self._ids: list[str] = []
        self._payloads: list[Payload] = []
        self._rows: dict[str, int] = {}

    @property
    def dimensions(self) -> int:
        """Length of every vector."""
        return int(self._vectors.shape[1])

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, ids: Sequence[str], vectors: FloatMatrix, payloads: Sequence[Payload]) -> None:
        """See `VectorIndex.add`."""
        if not len(ids) == len(vectors) == len(payloads):
            raise UsageError(f"There are {len(ids)} ids, {len(vectors)} vectors, {len(payloads)} payloads.")
        unit = _unit(_checked(vectors, self.dimensions, 2))
        copies = [_copied(ident, payload) for ident, payload in zip(ids, payloads, strict=True)]
        self._reserve(len(self) + len(ids))
        for ident, vector, payload in zip(ids, unit, copies, strict=True):
            row = self._rows.setdefault(ident, len(self._ids))
            if row == len(self._ids):
                self._ids.append(ident)
                self._payloads.append(payload)
            self._payloads[row] = payload
            self._vectors[row] = vector

    def search(self, query: FloatVector, k: int) -> list[Hit]:
        """See `VectorIndex.search`."""
        if k < 1:
            raise UsageError(f"k is {k}; it has to be at least 1.")
        asked = _unit(_checked(query, self.dimensions, 1)[None, :])
        rows, scores = top_k(self._vectors[: len(self)], asked, k, metric="inner_product")
        return [
            Hit(self._ids[row], score, self._payloads[row])
            for row, score in zip(rows[0].tolist(), scores[0].tolist(), strict=True)
        ]

    def payloads(self) -> list[Payload]:
        """Every payload, in the order of adding."""
        return list(self._payloads)

    def save(self, folder: Path) -> None:
        """See `VectorIndex.save`."""
        snapshot.write(folder, snapshot.Snapshot(self._ids, self._vectors[: len(self)], self._payloads))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """See `VectorIndex.load`."""
        kept = snapshot.read(folder)
        index = cls(int(kept.vectors.shape[1]))
        index._reserve(len(kept.ids))
        index._vectors[: len(kept.ids)] = kept.vectors  # as they were: normalising again could change a bit
        index._ids, index._payloads = list(kept.ids), list(kept.payloads)
        index._rows = {ident: row for row, ident in enumerate(index._ids)}
        return index

    def _reserve(self, rows: int) -> None:
        if rows > len(self._vectors):
            grown = np.zeros((max(rows, 2 * len(self._vectors)), self.dimensions), dtype=np.float32)
            grown[: len(self)] = self._vectors[: len(self)]
            self._vectors = grown


def _checked(array: FloatMatrix, width: int, ndim: int) -> FloatMatrix:
    if array.dtype != np.float32 or array.ndim != ndim or array.shape[-1] != width:
        raise UsageError(
            f"Vectors have to be float32 with {width} dimensions; found {array.dtype} of shape {array.shape}."
        )
    if not np.isfinite(array).all():
        raise UsageError("A vector holds NaN or infinity; only finite values can be compared.")
    return array


def _unit(vectors: FloatMatrix) -> FloatMatrix:
    # In float64: the square of a large float32 is infinite, that of a small one zero.
    wide = vectors.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.ascontiguousarray((wide / np.where(lengths == 0, 1, lengths)).astype(np.float32))


def _copied(ident: str, payload: Payload) -> Payload:
    """The payload as it will come back from disk, independent of the caller's object."""
    try:
        copy: Payload = json.loads(json.dumps(dict(payload), allow_nan=False))
    except (TypeError, ValueError) as exc:
        raise UsageError(f"The payload of {ident!r} is not a JSON object: {exc}.") from exc
    return copy
