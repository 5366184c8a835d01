"""Okapi BM25 over an inverted index held in memory."""

from __future__ import annotations

import heapq
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from sage.common.errors import UsageError

__all__ = ["Bm25", "tokenize"]

_TOKEN = re.compile(r"[^\W_]+")


def tokenize(text: str) -> list[str]:
    """Case-folded runs of letters and digits.

    >>> tokenize("SagePorts: `LLM_PORT` = 8001")
    ['sageports', 'llm', 'port', '8001']
    """
    return _TOKEN.findall(text.casefold())


class Bm25:
    """BM25 ranking. Documents are numbered from 0 in the order they were added.

    score(d, q) = Σ_t∈q idf(t) · f(t,d)·(k1 + 1) / (f(t,d) + k1·(1 - b + b·|d|/avgdl)), with
    idf(t) = ln(1 + (N - n(t) + 0.5)/(n(t) + 0.5)).

    Source: S. Robertson, H. Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", Foundations
    and Trends in Information Retrieval 3(4), 2009; the 1 inside the logarithm, which keeps idf above zero for
    a term in more than half of the documents, is Lucene's. A term repeated in the query counts each time.
    """

    def __init__(self, documents: Iterable[str] = (), *, k1: float = 1.2, b: float = 0.75) -> None:
        if k1 < 0 or not 0 <= b <= 1:
            raise UsageError(f"BM25 needs k1 of at least 0 and b from 0 to 1; found k1={k1}, b={b}.")
        self._k1, self._b = k1, b
        self._postings: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self._lengths: list[int] = []
        self._total = 0
        self.add(documents)

    def __len__(self) -> int:
        return len(self._lengths)

    def add(self, documents: Iterable[str]) -> None:
        """Append documents."""
        for text in documents:
            tokens = tokenize(text)
            for term, count in Counter(tokens).items():
                self._postings[term].append((len(self._lengths), count))
            self._lengths.append(len(tokens))
            self._total += len(tokens)

    def idf(self, term: str) -> float:
        """Inverse document frequency of one token; greatest for a token that no document has."""
        n = len(self._postings.get(term, ()))
        return math.log1p((len(self) - n + 0.5) / (n + 0.5))

    def scores(self, query: str) -> dict[int, float]:
        """Scores of the documents that share a token with the query, by document number."""
        total: dict[int, float] = defaultdict(float)
        mean = self._total / len(self) if self._total else 1.0
        for term, times in Counter(tokenize(query)).items():
            weight = self.idf(term) * times * (self._k1 + 1)
            for doc, count in self._postings.get(term, ()):
                norm = self._k1 * (1 - self._b + self._b * self._lengths[doc] / mean)
                total[doc] += weight * count / (count + norm)
        return dict(total)

    def search(self, query: str, k: int) -> Sequence[tuple[int, float]]:
        """The best `k` documents as (number, score), best first; equal scores by lower number.

        >>> Bm25(["red fox", "blue fox", "blue sky"]).search("sky", 2)[0][0]
        2
        """
        if k < 1:
            raise UsageError(f"k is {k}; it has to be at least 1.")
        return heapq.nsmallest(k, self.scores(query).items(), key=lambda hit: (-hit[1], hit[0]))
