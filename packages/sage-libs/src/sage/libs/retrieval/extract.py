"""Extractive answers: the sentence of the passages that fits a question best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sage.common.errors import UsageError
from sage.libs.retrieval.bm25 import Bm25, tokenize
from sage.libs.text.sentences import sentences

__all__ = ["Scored", "Sentence", "best_sentence", "sentence_scores", "sentences_of"]

_SHORTEST = 4  # words; fewer is a label, not a statement
# Words that carry a question's form, not its matter; among a few sentences they are rare enough to mislead.
_FORM = frozenset(
    [
        "a",
        "about",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "by",
        "can",
        "could",
        "did",
        "do",
        "does",
        "for",
        "from",
        "had",
        "has",
        "have",
        "how",
        "i",
        "if",
        "in",
        "into",
        "is",
        "it",
        "its",
        "may",
        "me",
        "must",
        "of",
        "on",
        "or",
        "our",
        "say",
        "said",
        "should",
        "so",
        "than",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "they",
        "this",
        "to",
        "us",
        "was",
        "we",
        "were",
        "what",
        "when",
        "where",
        "which",
        "who",
        "whom",
        "whose",
        "why",
        "will",
        "with",
        "would",
        "you",
        "your",
    ]
)


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence and where it is from."""

    text: str
    source: str


@dataclass(frozen=True, slots=True)
class Scored:
    """The chosen sentence. `score` is between 0 and 1 and compares sentences of one call only."""

    text: str
    source: str
    score: float


def sentences_of(passages: Sequence[tuple[str, str]]) -> list[Sentence]:
    """The distinct sentences of `(source, text)` passages, in order, but for those under four words."""
    found: dict[str, Sentence] = {}
    for source, text in passages:
        for sentence in sentences(text):
            if len(tokenize(sentence)) >= _SHORTEST:
                found.setdefault(sentence, Sentence(sentence, source))
    return list(found.values())


def sentence_scores(
    question: str, candidates: Sequence[Sentence], *, similarities: Sequence[float] | None = None
) -> list[float]:
    """How well each candidate fits the question, from 0 (nothing in common) to 1, within one call.

    By words: BM25 of the question's distinct words but for function words, with the candidates as the
    collection (so rare words weigh most), over the best one's.
    With `similarities` (cosine of each candidate with the question, in their order) it is the mean of both.
    """
    if similarities is not None and len(similarities) != len(candidates):
        raise UsageError(f"There are {len(candidates)} sentences and {len(similarities)} similarities.")
    asked = dict.fromkeys(tokenize(question))
    matter = [word for word in asked if word not in _FORM] or list(asked)
    lexical = Bm25(c.text for c in candidates).scores(" ".join(matter))
    top = max(lexical.values(), default=0.0)
    scores = [lexical.get(i, 0.0) / top if top else 0.0 for i in range(len(candidates))]
    if similarities is None:
        return scores
    return [(score + max(cosine, 0.0)) / 2 for score, cosine in zip(scores, similarities, strict=True)]


def best_sentence(
    question: str, candidates: Sequence[Sentence], *, similarities: Sequence[float] | None = None
) -> Scored | None:
    """The candidate that answers the question best, or None when nothing has anything in common with it.

    By `sentence_scores`; equal scores go to the earlier candidate.

    >>> candidates = [Sentence("It has layers.", "a"), Sentence("The port is 1.", "b")]
    >>> found = best_sentence("Which port?", candidates)
    >>> found.source if found else None
    'b'
    """
    best: Scored | None = None
    scores = sentence_scores(question, candidates, similarities=similarities)
    for candidate, score in zip(candidates, scores, strict=True):
        if score > (best.score if best else 0.0):
            best = Scored(candidate.text, candidate.source, score)
    return best
