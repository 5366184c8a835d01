"""Question answering over a folder of documents, as two flows: one fills a store, one answers from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sage.kernel.flow import Flow
from sage.kernel.options import Batch
from sage.middleware.client import ModelClient
from sage.middleware.models import NANO, served_name
from sage.middleware.operators.documents import documents, split
from sage.middleware.operators.generation import Generate, prompt
from sage.middleware.operators.records import Question
from sage.middleware.operators.retrieval import Embed, Focus, Index, Refine, Retrieve
from sage.middleware.operators.store import PassageStore

__all__ = ["FEW", "PASSAGE_CHARS", "AnswerOptions", "Models", "answer_flow", "ingest_flow", "served_flow"]

PASSAGE_CHARS = 400
"""The size of a passage; Markdown is cut at its own seams, so that passages need not overlap."""

FEW = 4
"""Sentences that SAGE Nano is given: of more it takes the right one less often."""

_TEXTS_PER_CALL = 32


@dataclass(frozen=True, slots=True)
class Models:
    """Ids of the models to ask."""

    chat: str
    embed: str


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """How many passages go into a prompt, their characters together, and the longest answer in tokens.

    `sentences`: only so many go in, those that fit the question best; 0 = passages whole, None = as the model
    needs it: `FEW` for SAGE Nano, else whole.
    """

    passages: int = 8
    max_chars: int = 3000
    max_tokens: int = 256
    sentences: int | None = None

    def sentences_for(self, model: str) -> int:
        """How many sentences a model gets; 0 = all."""
        if self.sentences is not None:
            return self.sentences
        return FEW if model == served_name(NANO) else 0


def ingest_flow(
    docs: Path, store: PassageStore, models: Models, *, client: ModelClient | None = None
) -> Flow:
    """Read the documents of a folder, split them, embed the passages, put them into `store`.

    Without a client the running stack is used. Raises NotFoundError for a folder without documents.
    """
    flow = Flow("docs-qa.ingest")
    passages = flow.source(documents(docs), name="documents").flatmap(
        split(PASSAGE_CHARS, overlap=0), name="split"
    )
    embedded = passages.map_batch(
        Embed(models.embed, client=client), Batch(_TEXTS_PER_CALL), concurrency=2, order="input", name="embed"
    )
    embedded.sink(Index(store=store), name="index")
    return flow


def answer_flow(
    store: PassageStore | Path,
    models: Models,
    *,
    options: AnswerOptions | None = None,
    client: ModelClient | None = None,
) -> Flow:
    """Answer each `Question` with an `Answer`; the parts of its stream are the model's `Delta`s.

    `store`: what to search, or the folder that an index was saved in.
    """
    options = options or AnswerOptions()
    where: dict[str, Any] = {"folder": store} if isinstance(store, Path) else {"store": store}
    flow = Flow("docs-qa.answer")
    found = flow.requests(Question).map(
        Retrieve(models.embed, k=options.passages, **where, client=client), name="retrieve"
    )
    if sentences := options.sentences_for(models.chat):
        found = found.map(Focus(sentences, models.embed, client=client), name="focus")
    asked = found.map(prompt(max_chars=options.max_chars), name="prompt")
    answered = asked.map(Generate(models.chat, options.max_tokens, client=client), name="generate")
    flow.reply(answered.map(Refine(models.embed, client=client), name="refine"))
    return flow


def served_flow(
    index: str,
    chat: str,
    embed: str,
    passages: int = 8,
    max_tokens: int = 256,
    sentences: int | None = None,
) -> Flow:
    """The flow `docs-qa` of group `sage.models`: answers from the folder that an index was saved in.

    `chat` and `embed` are ids of models; the others see `AnswerOptions`.
    """
    options = AnswerOptions(passages=passages, max_tokens=max_tokens, sentences=sentences)
    return answer_flow(Path(index).expanduser(), Models(chat, embed), options=options)
