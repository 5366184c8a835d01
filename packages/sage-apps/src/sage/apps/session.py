"""Running the two flows for a person: ingest with progress, answers as they stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sage.apps.docs_qa import AnswerOptions, Models, answer_flow, ingest_flow
from sage.apps.talk import Talk
from sage.common.errors import SageError
from sage.kernel.runtime.local import LocalEnvironment
from sage.kernel.runtime.report import OperatorReport
from sage.middleware.client import ModelClient
from sage.middleware.operators.documents import find_documents
from sage.middleware.operators.records import Answer, Question
from sage.middleware.operators.store import PassageStore

__all__ = ["Answered", "Session", "label_of", "to_json"]


def label_of(model: str, *, random_weights: bool) -> str:
    """What stands before a text, so that nobody takes it for another model's."""
    return "[RANDOM-WEIGHTS] " if random_weights else f"[{model}] "


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer, its model and whether that has random weights, seconds to the first token and to the end."""

    answer: Answer
    model: str
    random_weights: bool
    ttft_s: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Session:
    """Models, their client (None: that of the running stack), and where to talk."""

    models: Models
    talk: Talk
    client: ModelClient | None = None
    random_weights: bool = False

    async def ingest(self, docs: Path) -> PassageStore:
        """Fill a store from a folder. Raises SageError when nothing came out of it."""
        store = PassageStore()
        total = len(find_documents(docs))
        flow = ingest_flow(docs, store, self.models, client=self.client)
        with self.talk.progress("ingest: documents", total) as show:

            def progress(reports: Sequence[OperatorReport]) -> None:
                show(next(r.items_out for r in reports if r.name == "documents"))

            report = await LocalEnvironment(on_progress=progress).run(flow)
        if not len(store):
            raise SageError(f"The documents in {docs} are empty: there is nothing to ask about.")
        self.talk.say(f"ingest: {total} documents, {len(store)} passages in {report.seconds:.1f} s")
        return store

    async def answer(
        self,
        store: PassageStore,
        questions: Sequence[str],
        *,
        on_token: Callable[[], None] = lambda: None,
    ) -> list[Answered]:
        """Answer questions one after the other; `on_token` is called with each streamed token."""
        options = AnswerOptions(max_tokens=48 if self.random_weights else 256)
        flow = answer_flow(store, self.models, options=options, client=self.client)
        async with await LocalEnvironment().submit(flow) as job:
            return [await self._ask(job, question, on_token) for question in questions]

    async def _ask(self, job: Any, question: str, on_token: Callable[[], None]) -> Answered:
        talk, start, first = self.talk, time.perf_counter(), 0.0
        talk.out(f"\nQ: {question}")
        talk.out(f"A: {label_of(self.models.chat, random_weights=self.random_weights)}", end="")
        stream = job.stream(Question(question))
        async for delta in stream:
            if delta.text:
                talk.out(delta.text if first else delta.text.lstrip(), end="")
                first = first or time.perf_counter() - start
                on_token()
        answer: Answer = await stream.reply()
        seconds = time.perf_counter() - start
        done = Answered(answer, self.models.chat, self.random_weights, first, seconds)
        if not answer.text.strip():
            raise SageError(f"The model {self.models.chat} gave no text for the question {question!r}.")
        extract = answer.extract
        best = f"“{extract.text}” — {extract.source}" if extract else "no retrieved sentence fits"
        talk.out(f"\nbest sentence: {best}\nsources: {', '.join(answer.sources)}")
        return done


def to_json(answered: Answered) -> dict[str, Any]:
    """An answer as plain data."""
    answer = answered.answer
    extract = answer.extract
    return {
        "question": answer.question,
        "answer": answer.text.strip(),
        "model": answered.model,
        "random_weights": answered.random_weights,
        "sources": [
            {"document": r.passage.doc, "start": r.passage.start, "end": r.passage.end, "score": r.score}
            for r in answer.retrieval.found
        ],
        "extract": {"text": extract.text, "source": extract.source} if extract else None,
        "request_id": answer.request_id,
        "ttft_s": answered.ttft_s,
        "seconds": answered.seconds,
        "usage": {
            "prompt_tokens": answer.usage.prompt_tokens,
            "completion_tokens": answer.usage.completion_tokens,
        }
        if answer.usage
        else None,
    }
