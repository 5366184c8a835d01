"""The vector-index port."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

__all__ = ["FloatMatrix", "FloatVector", "Hit", "Payload", "VectorIndex"]

FloatMatrix = npt.NDArray[np.float32]
FloatVector = npt.NDArray[np.float32]
Payload = Mapping[str, Any]  # a JSON object


@dataclass(frozen=True, slots=True)
class Hit:
    """One result: `score` is the cosine with the query, -1 to 1."""

    id: str
    score: float
    payload: Payload


class VectorIndex(Protocol):
    """Vectors with ids and payloads, found again by cosine.

    `sage.middleware.testing.vector.VectorIndexConformance` says the rest as tests.
    """

    @property
    def dimensions(self) -> int:
        """Length of every vector."""
        ...

    def add(self, ids: Sequence[str], vectors: FloatMatrix, payloads: Sequence[Payload]) -> None:
        """Add vectors; an id that is there already is replaced and keeps its place.

        All or nothing. Raises UsageError: lengths that differ, another dtype or width, values that are not
        finite, a payload that JSON cannot hold.
        """
        ...

    def search(self, query: FloatVector, k: int) -> list[Hit]:
        """The best `min(k, len)` hits, best first; equal scores in order of their adding."""
        ...

    def save(self, folder: Path) -> None:
        """Write the index to a folder; what was there is replaced at once or not at all."""
        ...

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote. Raises NotFoundError (no index there) or SageError (damaged)."""
        ...

    def __len__(self) -> int: ...
