"""What flows between the operators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sage.libs.retrieval import Scored
from sage.middleware.client import Message
from sage.middleware.engines.port import Usage
from sage.middleware.vector.port import FloatVector

__all__ = ["Answer", "Chat", "Document", "Embedded", "Passage", "Prompt", "Question", "Ranked", "Retrieval"]


@dataclass(frozen=True, slots=True)
class Document:
    """A text and its name; names are unique within a collection."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Passage:
    """Characters `start` to `end` of a document, or what is kept of them."""

    doc: str
    text: str
    start: int
    end: int

    @property
    def id(self) -> str:
        """`<document>#<start>-<end>`: the same text of the same document keeps its id."""
        return f"{self.doc}#{self.start}-{self.end}"


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """A passage and its vector."""

    passage: Passage
    vector: FloatVector


@dataclass(frozen=True, slots=True)
class Question:
    """What a user asks."""

    text: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation as a client sent it; `params` are its other OpenAI parameters, such as `temperature`."""

    messages: tuple[Message, ...]
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ranked:
    """A passage found for a question; `score`: fused, or a reranker's; no `cosine` if only words matched."""

    passage: Passage
    score: float
    cosine: float | None


@dataclass(frozen=True, slots=True)
class Retrieval:
    """A question and what was found for it, best first; `extract`: the best sentence, if `focus` chose it."""

    question: Question
    found: tuple[Ranked, ...]
    extract: Scored | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model will be asked."""

    retrieval: Retrieval
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said; `extract` is the retrieved sentence that fits best, once `refine` chose it."""

    retrieval: Retrieval
    text: str
    usage: Usage | None
    request_id: str
    extract: Scored | None = None

    @property
    def question(self) -> str:
        """The question's text."""
        return self.retrieval.question.text

    @property
    def sources(self) -> list[str]:
        """Names of the documents retrieved, best first, each once."""
        return list(dict.fromkeys(ranked.passage.doc for ranked in self.retrieval.found))
