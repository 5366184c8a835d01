"""Embed passages, keep them, find them again, rerank them, and pick the sentences that answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sage.common.errors import UsageError
from sage.libs.retrieval import Scored, Sentence, best_sentence, sentence_scores, sentences_of
from sage.middleware.client import ModelClient
from sage.middleware.operators.connect import Connected
from sage.middleware.operators.records import Answer, Embedded, Passage, Question, Retrieval
from sage.middleware.operators.store import PassageStore

__all__ = ["Embed", "Focus", "Index", "Refine", "Rerank", "Retrieve"]


class Embed(Connected):
    """For `map_batch`: the vectors of passages, one embedding call per batch."""

    def __init__(self, model: str, *, client: ModelClient | None = None) -> None:
        super().__init__(client)
        self._model = model

    async def __call__(self, passages: Sequence[Passage]) -> list[Embedded]:
        """Embed a batch. Nobody waits for it: it goes behind interactive requests."""
        vectors = await self.client.embed([p.text for p in passages], model=self._model, bulk=True)
        return [Embedded(p, v) for p, v in zip(passages, vectors, strict=True)]


class Index:
    """A sink of embedded passages: into `store` as they come, and to `folder` once all are there.

    With checkpoints the folder is written at each of them, as a whole. A run that goes on from one reads it
    first; a passage that comes again takes the place of itself, so that each is there once.
    """

    def __init__(self, folder: Path | None = None, *, store: PassageStore | None = None) -> None:
        if folder is None and store is None:
            raise UsageError("An index goes to a folder, to a store, or both; neither was given.")
        self._folder = folder
        self._store = PassageStore() if store is None else store  # an empty store is false
        self._fresh = False  # there is more than the folder has
        self._prepared = False  # checkpoints are taken

    async def write(self, _epoch: int, items: Sequence[Embedded]) -> None:
        """Add a batch."""
        self._store.add(items)
        self._fresh = True

    async def prepare(self, _epoch: int) -> None:
        """Save what a checkpoint counts on."""
        self._prepared = True
        if self._fresh:
            await self._save()

    async def commit(self, _epoch: int) -> None:
        """Save, where that was not done before. Raises UsageError when there is nothing."""
        if not self._prepared:
            await self._save()

    async def recover(self, epoch: int, _prepared: None) -> None:
        """Read what the folder holds. Raises UsageError for a store that is in memory alone."""
        if not epoch:
            return
        if self._folder is None:
            raise UsageError(
                "An index without a folder cannot go on from a checkpoint: what it held is gone.",
                hint="Give it a folder.",
            )
        if self._folder.exists():
            self._store.adopt(await asyncio.to_thread(PassageStore.load, self._folder))

    async def _save(self) -> None:
        if self._folder is not None:
            await asyncio.to_thread(self._store.save, self._folder)
            self._fresh = False


class Retrieve(Connected):
    """For `map`: the best `k` passages for a question, by vectors and words together."""

    def __init__(
        self,
        model: str,
        folder: Path | None = None,
        k: int = 4,
        *,
        store: PassageStore | None = None,
        client: ModelClient | None = None,
    ) -> None:
        super().__init__(client)
        if (folder is None) == (store is None):
            raise UsageError("Retrieval reads from a folder or from a store; give one of them.")
        if k < 1:
            raise UsageError(f"k is {k}; it has to be at least 1.")
        self._model, self._folder, self._k = model, folder, k
        self._store = store

    async def setup(self) -> None:
        """Read the index and connect."""
        if self._folder is not None:
            self._store = await asyncio.to_thread(PassageStore.load, self._folder)
        await super().setup()

    async def __call__(self, question: Question | str) -> Retrieval:
        """Search."""
        if self._store is None:
            raise UsageError("Retrieve is used outside of a flow: call setup() first.")
        asked = Question(question) if isinstance(question, str) else question
        vectors = await self.client.embed([asked.text], model=self._model)
        return Retrieval(asked, tuple(self._store.search(asked.text, vectors[0], self._k)))


class Rerank(Connected):
    """For `map`: put what was found in the order of a cross-encoder's scores, and keep the best `k`.

    Each `score` becomes that of the cross-encoder; `cosine` stays. `k` = 0 keeps all.

    >>> import asyncio
    >>> from sage.middleware.operators.records import Passage, Question, Ranked, Retrieval
    >>> class Client:
    ...     async def rerank(self, query, documents, *, model):
    ...         return [len(document) for document in documents]
    >>> found = [Ranked(Passage("a.md", text, 0, len(text)), 1.0, None) for text in ("one", "three")]
    >>> rerank = Rerank("my-reranker", k=1, client=Client())
    >>> better = asyncio.run(rerank(Retrieval(Question("how many?"), tuple(found))))
    >>> [(one.passage.text, one.score) for one in better.found]
    [('three', 5.0)]
    """

    def __init__(self, model: str, k: int = 0, *, client: ModelClient | None = None) -> None:
        super().__init__(client)
        if k < 0:
            raise UsageError(f"k is {k}; it has to be at least 1, or 0 for all.")
        self._model, self._k = model, k

    async def __call__(self, retrieval: Retrieval) -> Retrieval:
        """Score what was found. Equal scores keep their order."""
        texts = [ranked.passage.text for ranked in retrieval.found]
        scores = await self.client.rerank(retrieval.question.text, texts, model=self._model)
        scored = [
            replace(one, score=float(score)) for one, score in zip(retrieval.found, scores, strict=True)
        ]
        best = sorted(scored, key=lambda one: -one.score)
        return replace(retrieval, found=tuple(best[: self._k or None]))


class _Choosing(Connected):
    """Scores sentences by words, and by cosine where there is a model for it."""

    def __init__(self, model: str, client: ModelClient | None) -> None:
        super().__init__(client)
        self._model = model

    async def setup(self) -> None:
        """Connect, if there is a model to call."""
        if self._model:
            await super().setup()

    async def _similarities(self, question: str, candidates: Sequence[Sentence]) -> list[float] | None:
        """Cosine of each with the question; None where words alone count."""
        if not self._model or not candidates:
            return None
        vectors = await self.client.embed([question, *(c.text for c in candidates)], model=self._model)
        lengths = np.linalg.norm(vectors, axis=1)
        unit = vectors / np.where(lengths == 0, 1, lengths)[:, None]
        similarities: list[float] = (unit[1:] @ unit[0]).tolist()
        return similarities


class Focus(_Choosing):
    """For `map`: keep only the `sentences` of what was found that fit the question best, in their passages.

    So a prompt is short, which a small model answers better and every model reads sooner; what a kept
    sentence refers to may be lost. Passages of which nothing is kept go; where there is no sentence
    at all, only labels, everything stays as it is. Equal scores go to the earlier ones.
    With a `model`, cosine counts as much as words; with an empty one only words count and nothing is called.

    >>> import asyncio
    >>> from sage.middleware.operators.records import Passage, Question, Ranked, Retrieval
    >>> text = "The queue is bounded by count. The gateway listens on port 1."
    >>> found = (Ranked(Passage("a.md", text, 0, len(text)), 1.0, None),)
    >>> focused = asyncio.run(Focus(1)(Retrieval(Question("Which port?"), found)))
    >>> focused.found[0].passage.text
    'The gateway listens on port 1.'
    """

    def __init__(self, sentences: int, model: str = "", *, client: ModelClient | None = None) -> None:
        super().__init__(model, client)
        if sentences < 1:
            raise UsageError(f"sentences is {sentences}; it has to be at least 1.")
        self._sentences = sentences

    async def __call__(self, retrieval: Retrieval) -> Retrieval:
        """Choose the sentences."""
        asked = retrieval.question.text
        texts = [(str(at), ranked.passage.text) for at, ranked in enumerate(retrieval.found)]
        candidates = sentences_of(texts)
        if not candidates:
            return retrieval
        similarities = await self._similarities(asked, candidates)
        scores = sentence_scores(asked, candidates, similarities=similarities)
        best = sorted(range(len(scores)), key=lambda at: -scores[at])[: self._sentences]
        kept = [candidates[at] for at in sorted(best)]
        found = []
        for at, ranked in enumerate(retrieval.found):
            text = " ".join(one.text for one in kept if one.source == str(at))
            if text:
                found.append(replace(ranked, passage=replace(ranked.passage, text=text)))
        first = candidates[best[0]] if scores[best[0]] > 0.0 else None
        if first is None:
            return replace(retrieval, found=tuple(found))
        doc = retrieval.found[int(first.source)].passage.doc
        return replace(retrieval, found=tuple(found), extract=Scored(first.text, doc, scores[best[0]]))


class Refine(_Choosing):
    """For `map`: add to an answer the retrieved sentence that fits the question best, with its source.

    With a `model`, cosine counts as much as words; with an empty one only words count and nothing is called.
    What `focus` has chosen among all sentences stands.
    """

    def __init__(self, model: str = "", *, client: ModelClient | None = None) -> None:
        super().__init__(model, client)

    async def __call__(self, answer: Answer) -> Answer:
        """Choose the sentence."""
        if answer.retrieval.extract is not None:
            return replace(answer, extract=answer.retrieval.extract)
        found = [(ranked.passage.doc, ranked.passage.text) for ranked in answer.retrieval.found]
        candidates = sentences_of(found)
        similarities = await self._similarities(answer.question, candidates)
        return replace(answer, extract=best_sentence(answer.question, candidates, similarities=similarities))
