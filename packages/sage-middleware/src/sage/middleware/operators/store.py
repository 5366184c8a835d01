"""Passages to search: by vector and by word, in one object that a flow fills and another one reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sage.common.errors import UsageError
from sage.libs.retrieval import Bm25, reciprocal_rank_fusion
from sage.middleware.operators.records import Embedded, Passage, Ranked
from sage.middleware.vector import FlatIndex
from sage.middleware.vector.port import FloatVector

__all__ = ["PassageStore"]

_POOL = 5  # each ranking offers this many times the passages asked for


class PassageStore:
    """A vector index and a BM25 index over the same passages; not thread-safe."""

    def __init__(self, vectors: FlatIndex | None = None) -> None:
        self._vectors = vectors
        self._passages: dict[str, Passage] = {}
        self._words: tuple[list[str], Bm25] | None = None

    def __len__(self) -> int:
        return len(self._passages)

    def add(self, items: Sequence[Embedded]) -> None:
        """Add passages; one that is there already is replaced. Raises UsageError for another vector width."""
        if not items:
            return
        if self._vectors is None:
            self._vectors = FlatIndex(len(items[0].vector))
        matrix = np.stack([item.vector for item in items])
        self._vectors.add([i.passage.id for i in items], matrix, [_payload(i.passage) for i in items])
        self._passages.update({item.passage.id: item.passage for item in items})
        self._words = None

    def adopt(self, other: PassageStore) -> None:
        """Hold what `other` holds, in place of what is here."""
        self._vectors, self._passages, self._words = other._vectors, other._passages, None

    def search(self, text: str, vector: FloatVector, k: int) -> list[Ranked]:
        """The best `k` passages by reciprocal rank fusion of cosine and BM25."""
        if self._vectors is None or not self._passages:
            return []
        near = self._vectors.search(vector, min(k * _POOL, len(self)))
        ids, words = self._word_index()
        matching = [ids[number] for number, _ in words.search(text, k * _POOL)]
        fused = reciprocal_rank_fusion([[hit.id for hit in near], matching])
        cosines = {hit.id: hit.score for hit in near}
        return [Ranked(self._passages[i], score, cosines.get(i)) for i, score in fused[:k]]

    def save(self, folder: Path) -> None:
        """Write everything to a folder. Raises UsageError when there is nothing to write."""
        if self._vectors is None:
            raise UsageError("There is nothing to save: no passage was added.")
        self._vectors.save(folder)

    @classmethod
    def load(cls, folder: Path) -> PassageStore:
        """Read what `save` wrote. Raises NotFoundError or SageError."""
        index = FlatIndex.load(folder)
        store = cls(index)
        for payload in index.payloads():
            passage = Passage(
                str(payload["doc"]), str(payload["text"]), int(payload["start"]), int(payload["end"])
            )
            store._passages[passage.id] = passage
        return store

    def _word_index(self) -> tuple[list[str], Bm25]:
        # Built when first searched: while a flow fills the store nobody reads it.
        if self._words is None:
            self._words = (list(self._passages), Bm25(p.text for p in self._passages.values()))
        return self._words


def _payload(passage: Passage) -> dict[str, str | int]:
    return {"doc": passage.doc, "text": passage.text, "start": passage.start, "end": passage.end}
